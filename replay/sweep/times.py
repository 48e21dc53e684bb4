"""Step times of configurations in a forward sweep, beside the unpruned policy in the same rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from replay.replay import Replay
from replay.summary import Summary
from replay.sweep.cells import Target
from replay.timing import TimingOptions
from tracekit.config import Configuration

__all__ = ["time_configurations"]


def time_configurations(target: Target, configs: Sequence[Configuration], policy: str | None) -> list[dict[str, Any]]:
    """Per configuration the figures of `TIMING_SCHEMA`, on a sample of the steps of the episode `target`.

    All `configs` and their references take turns, so that a ratio holds on a machine whose speed drifts.
    """
    named = [replace(config, name=config.digest) for config in configs]  # names are labels, and may be equal
    result = Replay(target.trace, policy=policy, episodes=[target.episode]).run(*named, timing=TimingOptions())
    return [_row(summary) for summary in result.summaries]


def _row(found: Summary) -> dict[str, Any]:
    """Nothing for a configuration in throughput mode: several steps at once have no time of their own."""
    if found.timing is None or found.speedup is None:
        return {}
    return {
        "step_ms": found.timing.median_ms,
        "step_spread_ms": found.timing.spread_ms,
        "time_ratio": 1 / found.speedup.total,
        "speedup_encoders": found.speedup.encoders,
        "speedup_reuse": found.speedup.reuse,
        "speedup_pruning": found.speedup.pruning,
    }
