"""Everything that makes a trace: the recorder, the simulator, and attaching to policies that are not ours."""

from recorders.attach_generators import generator_states, restore_generators
from recorders.attach_run import attach
from recorders.episode import EpisodeRecording, StepRecording
from recorders.prune_live_run import LivePruning, prune_live
from recorders.recorder import Recorder
from tracekit.capture import CaptureSpec

__all__ = [
    "CaptureSpec",
    "EpisodeRecording",
    "LivePruning",
    "Recorder",
    "StepRecording",
    "attach",
    "generator_states",
    "prune_live",
    "restore_generators",
]
