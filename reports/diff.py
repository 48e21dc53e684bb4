"""Are two saved replays the same? By digest, and if not: which step differs first, and in what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replay import SavedReplay
from tracekit.errors import TraceError

__all__ = ["Difference", "ReplayDiff", "diff_replays"]


@dataclass(frozen=True, slots=True)
class Difference:
    """The first step (0-based) of a configuration that differs: in decisions (masks and reasons), actions or both."""

    configuration: str
    episode: str
    step: int
    decisions: bool
    actions: bool


@dataclass(frozen=True, slots=True)
class ReplayDiff:
    """`first`: per configuration the first difference; empty where all are equal."""

    configurations: tuple[str, ...]
    first: tuple[Difference, ...]

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not self.first

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "equal": self.equal,
            "configurations": list(self.configurations),
            "first_difference": [
                {
                    "configuration": d.configuration,
                    "episode": d.episode,
                    "step": d.step,
                    "decisions_differ": d.decisions,
                    "actions_differ": d.actions,
                }
                for d in self.first
            ],
        }


def diff_replays(a: str | Path, b: str | Path) -> ReplayDiff:
    """Compare two saved replays. Raises TraceError where they cover other traces, configurations or episodes."""
    one, other = SavedReplay(a), SavedReplay(b)
    _check_comparable(one, other)
    first = []
    for name in one.configurations:
        difference = _first_difference(name, one, other)
        if difference is not None:
            first.append(difference)
    return ReplayDiff(tuple(one.configurations), tuple(first))


def _check_comparable(a: SavedReplay, b: SavedReplay) -> None:
    if a.manifest["trace_digest"] != b.manifest["trace_digest"]:
        raise TraceError(
            f"{a.path} and {b.path} replay different traces ({a.manifest['trace_digest'][:12]} and "
            f"{b.manifest['trace_digest'][:12]}); replay the same trace twice to compare"
        )
    ours, theirs = a.configurations, b.configurations
    if set(ours) != set(theirs):
        raise TraceError(
            f"{a.path} and {b.path} replay different configurations ({', '.join(ours)} and {', '.join(theirs)}); "
            "give both the same --config files"
        )
    if a.manifest["episodes"] != b.manifest["episodes"]:
        raise TraceError(f"{a.path} and {b.path} cover different episodes of the trace; give both the same --episodes")


def _first_difference(name: str, a: SavedReplay, b: SavedReplay) -> Difference | None:
    for ours, theirs in zip(a.digests(name), b.digests(name), strict=True):
        if ours != theirs:
            return Difference(
                name, ours.episode, ours.step, ours.decision != theirs.decision, ours.action != theirs.action
            )
    return None
