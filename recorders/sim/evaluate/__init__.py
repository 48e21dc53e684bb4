"""Closed-loop evaluation in the simulator: success rates under pruning configurations, beside the controls."""

from recorders.sim.evaluate.controls import CONTROLS, Case, control_case, unpruned
from recorders.sim.evaluate.results import Evaluation
from recorders.sim.evaluate.run import evaluate

__all__ = ["CONTROLS", "Case", "Evaluation", "control_case", "evaluate", "unpruned"]
