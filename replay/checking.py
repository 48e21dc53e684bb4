"""Everything a second time, in another order and in other batches, before anything is claimed of a replay."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from replay.accuracy import EpisodeReplay
from replay.decisions import decide_recorded
from replay.replay import Progress, Replay
from replay.results import ReplayResult
from replay.source import TraceSource
from replay.sweep.cells import Target
from replay.sweep.decided import decide_cells
from replay.sweep.inputs import EpisodeInputs
from tracekit.config import Configuration
from tracekit.errors import ConfigError, TraceError
from tracekit.pruning import decision_digest

__all__ = ["BATCH", "Check", "check_replay"]

BATCH = 1000
"""Configurations that are decided together, beside one at a time."""


@dataclass(frozen=True, slots=True)
class Check:
    """What a second run showed.

    `repeated`: configurations whose decisions and actions were computed again, in a fresh replay, configurations and
    episodes in reverse. `batched`: those whose decisions were also taken from stored scores: step by step, alone, and
    in a shuffled batch of 1000. `unclaimed`: those that are equal to rounding only (throughput mode), which nothing is
    claimed of. `problems`: what did not come out the same, one line each.
    """

    repeated: tuple[str, ...]
    batched: tuple[str, ...]
    unclaimed: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether everything came out the same, bit by bit."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Plain values, `passed` included."""
        return {**{key: list(value) for key, value in asdict(self).items()}, "passed": self.passed}


def check_replay(result: ReplayResult, *, policy: str | None = None, progress: Progress | None = None) -> Check:
    """Run all that `result` holds again; `policy` as it was given the first time. Raises as `Replay` does."""
    configs = [summary.config for summary in result.summaries]
    exact = [config for config in configs if config.execution.mode == "latency"]
    names = [episode.id for episode in next(iter(result.episodes.values()))]
    problems: list[str] = []
    if exact:
        again = Replay(result.trace, policy=policy, episodes=names[::-1], progress=progress).run(*exact[::-1])
        for config in exact:
            problems += _differences(config.name, result.episodes[config.name], again.episodes[config.name][::-1])
    batched, found = _batches(result.trace, names, configs)
    return Check(
        repeated=tuple(config.name for config in exact),
        batched=batched,
        unclaimed=tuple(config.name for config in configs if config not in exact),
        problems=(*problems, *found),
    )


def _differences(name: str, first: Sequence[EpisodeReplay], second: Sequence[EpisodeReplay]) -> list[str]:
    found = []
    for ours, theirs in zip(first, second, strict=True):
        for number, (one, other) in enumerate(zip(ours.steps, theirs.steps, strict=True), start=1):
            where = f"{name}, episode {ours.id}, step {number}"
            if decision_digest([one.result.decision]) != decision_digest([other.result.decision]):
                found.append(f"{where}: another decision in the second run")
            if one.result.samples.tobytes() != other.result.samples.tobytes():
                found.append(f"{where}: another action in the second run")
    return found


def _batches(trace: Path, names: Sequence[str], configs: Sequence[Configuration]) -> tuple[tuple[str, ...], list[str]]:
    """Names of the configurations that can be decided from what is stored, and where batches made a difference."""
    source = TraceSource(trace)
    if source.pruned_by is not None:
        return (), []
    problems: list[str] = []
    decided: list[str] = []
    for episode in source.episodes(names):
        target = Target(str(trace), source.trace.digest, episode.info.id, episode.info.uid, "", len(episode))
        inputs = EpisodeInputs(target, episode)
        alone: dict[str, str] = {}
        for config in configs:
            try:
                alone[config.name] = decision_digest(decide_recorded(episode, config))
            except (TraceError, ConfigError):  # its decisions need a forward pass, or scores that were not stored
                continue
            (row,) = decide_cells(inputs, [config], None)
            if row["decisions_digest"] != alone[config.name]:
                problems.append(f"{config.name}, episode {episode.info.id}: step by step it decides otherwise")
        own = [config for config in configs if config.name in alone]
        many = [own[index % len(own)] for index in range(BATCH if own else 0)]
        random.Random(0).shuffle(many)  # noqa: S311  # an order, not a secret
        different = {
            config.name
            for config, row in zip(many, decide_cells(inputs, many, None), strict=True)
            if row["decisions_digest"] != alone[config.name]
        }
        problems += [f"{name}, episode {episode.info.id}: in a batch it decides otherwise" for name in different]
        decided = [config.name for config in own]
    return tuple(decided), problems
