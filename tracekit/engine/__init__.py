"""One control step, pruned or not; the only code that runs a policy, live and in replay."""

from tracekit.engine.controller import Controller
from tracekit.engine.deciding import Decider, keep_everything, observed_when, pruner_state, reduced
from tracekit.engine.draws import StepDraws, draw
from tracekit.engine.forward import Beside
from tracekit.engine.observing import needed_capture, observables_of, spread_attention, translation_m
from tracekit.engine.result import Captured, PassRecord, StepResult
from tracekit.engine.sharing import SharedPasses
from tracekit.engine.step import StepOptions, control_step, decision_shape
from tracekit.engine.threads import execution_threads
from tracekit.engine.together import run_together

__all__ = [
    "Beside",
    "Captured",
    "Controller",
    "Decider",
    "PassRecord",
    "SharedPasses",
    "StepDraws",
    "StepOptions",
    "StepResult",
    "control_step",
    "decision_shape",
    "draw",
    "execution_threads",
    "keep_everything",
    "needed_capture",
    "observables_of",
    "observed_when",
    "pruner_state",
    "reduced",
    "run_together",
    "spread_attention",
    "translation_m",
]
