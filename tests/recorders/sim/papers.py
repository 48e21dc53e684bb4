"""Papers as a finished training leaves them."""

from recorders.sim.environment import SCENE_VERSION
from recorders.sim.train.plan import TrainingPlan


def papers_for(weights_digest, *, tasks=("close_box",)):
    """What `TrainingSummary.to_json` gives, for a blind policy."""
    return {
        "plan": TrainingPlan(steps=6, blind=True).to_json() | {"tasks": list(tasks)},
        "step": 6,
        "seconds": 1.5,
        "frames": 20,
        "failed_episodes": 0,
        "demonstrations_digest": "d",
        "scene_version": SCENE_VERSION,
        "threads": 1,
        "parameters": 100,
        "weights_digest": weights_digest,
        "held_out": {"noise": 0.5},
        "before": [],
    }
