"""Training of the reference policy: demonstrations, objective, loop."""

from recorders.sim.train.plan import TrainingPlan
from recorders.sim.train.run import TrainingSummary, train
from recorders.sim.train.seeds import TRAINING_SEEDS

__all__ = ["TRAINING_SEEDS", "TrainingPlan", "TrainingSummary", "train"]
