"""Everything that consumes a trace and runs the policy again: decisions, pruned forwards, timings."""

from replay.analysis import TraceAnalysis, analyse
from replay.checking import Check, check_replay
from replay.decisions import replay_decisions
from replay.replay import Replay
from replay.results import ReplayResult, SavedReplay, check_target
from replay.timing import TimingOptions

__all__ = [
    "Check",
    "Replay",
    "ReplayResult",
    "SavedReplay",
    "TimingOptions",
    "TraceAnalysis",
    "analyse",
    "check_replay",
    "check_target",
    "replay_decisions",
]
