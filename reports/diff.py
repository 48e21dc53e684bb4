"""Are two saved replays the same? By digest, and if not: which step differs first, in what, and why masks differ."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from replay import SavedReplay
from reports.flips import FLIP_CLASSES, TOLERANCE, Flip, FlipClass, episode_flips
from tracekit.config import Configuration
from tracekit.errors import TraceError
from tracekit.store import Episode

__all__ = ["ConfigurationDiff", "Difference", "ReplayDiff", "diff_replays"]


@dataclass(frozen=True, slots=True)
class Difference:
    """The first step (0-based) of a configuration that differs: in decisions (masks and reasons), actions or both."""

    configuration: str
    episode: str
    step: int
    decisions: bool
    actions: bool


@dataclass(frozen=True, slots=True)
class ConfigurationDiff:
    """One configuration in both replays. `same_configuration`: whether both were replayed under one digest.

    `flips`: patches whose masks differ. `actions_relative`: largest ‖a − b‖ / ‖a‖ of a step's sampler outputs.
    """

    name: str
    same_configuration: bool
    first: Difference | None
    flips: tuple[Flip, ...]
    actions_relative: float

    @property
    def counts(self) -> dict[FlipClass, int]:
        """Flips by class."""
        return {kind: sum(flip.kind == kind for flip in self.flips) for kind in FLIP_CLASSES}

    def to_json(self) -> dict[str, Any]:
        """Counts by class, and the first flip of every class."""
        firsts = {flip.kind: flip.to_json() for flip in reversed(self.flips)}
        return {
            "same_configuration": self.same_configuration,
            "flips": self.counts,
            "first_flips": {kind: firsts.get(kind) for kind in FLIP_CLASSES},
            "actions_relative": self.actions_relative,
        }


@dataclass(frozen=True, slots=True)
class ReplayDiff:
    """`details`: per configuration, in order. `other`: what the two replays differ in beside the results.

    That is `fingerprint` (environment) and `versions` (program); where they agree, replays should be equal bit by bit.
    """

    details: tuple[ConfigurationDiff, ...]
    other: tuple[str, ...] = ()

    @property
    def configurations(self) -> tuple[str, ...]:
        """Names of what was compared."""
        return tuple(detail.name for detail in self.details)

    @property
    def first(self) -> tuple[Difference, ...]:
        """Per configuration the first difference; empty where all are equal."""
        return tuple(detail.first for detail in self.details if detail.first is not None)

    @property
    def equal(self) -> bool:
        """Whether nothing differs, bit by bit."""
        return not self.first

    @property
    def tolerable(self) -> bool:
        """Whether no mask bit differs by logic, or for real."""
        return not any(detail.counts["logic"] or detail.counts["real"] for detail in self.details)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "equal": self.equal,
            "tolerable": self.tolerable,
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
            "differences": {detail.name: detail.to_json() for detail in self.details},
            "environments_differ": "fingerprint" in self.other,
            "programs_differ": "versions" in self.other,
        }


def diff_replays(a: str | Path, b: str | Path) -> ReplayDiff:
    """Compare two saved replays. Raises TraceError where they cover other traces, configurations or episodes."""
    one, other = SavedReplay(a), SavedReplay(b)
    _check_comparable(one, other)
    details = tuple(_compare(name, one, other) for name in one.configurations)
    differ = tuple(key for key in ("fingerprint", "versions") if one.manifest.get(key) != other.manifest.get(key))
    return ReplayDiff(details, differ)


def _compare(name: str, a: SavedReplay, b: SavedReplay) -> ConfigurationDiff:
    same = a.configurations[name]["digest"] == b.configurations[name]["digest"]
    first = _first_difference(name, a, b)
    if first is None:
        return ConfigurationDiff(name, same, None, (), 0.0)
    config, theirs = (_configuration(name, replay) for replay in (a, b))
    relative = max(TOLERANCE[config.execution.dtype], TOLERANCE[theirs.execution.dtype])
    flips: list[Flip] = []
    moved = 0.0
    for (episode, ours), (_, other) in zip(a.episodes(name), b.episodes(name), strict=True):
        flips += episode_flips(episode, config, ours, other, relative)
        moved = max(moved, _moved(ours, other))
    return ConfigurationDiff(name, same, first, tuple(flips), moved)


def _configuration(name: str, replay: SavedReplay) -> Configuration:
    return Configuration.from_table(replay.manifest["tables"][name], f"{replay.path}, configuration {name!r}")


def _moved(a: Episode, b: Episode) -> float:
    """The largest relative difference between the sampler's outputs of one step."""
    ours, theirs = (one.read("action/samples")[:, -1].astype(np.float64) for one in (a, b))
    apart = np.sqrt(((ours - theirs) ** 2).sum((1, 2)))
    return float((apart / np.maximum(np.sqrt((ours**2).sum((1, 2))), 1e-12)).max(initial=0.0))


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
