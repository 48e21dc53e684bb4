"""Everything that consumes a trace and runs the policy again: decisions, pruned forwards, timings."""

from replay.decisions import replay_decisions
from replay.replay import Replay
from replay.results import ReplayResult, SavedReplay, check_target
from replay.timing import TimingOptions

__all__ = ["Replay", "ReplayResult", "SavedReplay", "TimingOptions", "check_target", "replay_decisions"]
