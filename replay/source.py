"""Reads what a replay feeds on out of a trace: observations, random draws, and what the recorded run answered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit import keys
from tracekit.camera import Camera
from tracekit.engine import StepDraws
from tracekit.errors import PolicyError, TraceError
from tracekit.observation import Observation
from tracekit.policy import Policy, Precision, load_policy
from tracekit.pruning import Reduction, Scores
from tracekit.records import recorded_draws, recorded_observation, recorded_scores
from tracekit.store import Episode, Trace

__all__ = ["RecordedEpisode", "RecordedStep", "TraceSource"]


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """One recorded control step, 0-based `index` within its episode. What the trace lacks is None."""

    index: int
    observation: Observation
    draws: StepDraws
    unclipped: npt.NDArray[np.float32] | None
    action: npt.NDArray[np.float64] | None
    scores: Scores | None
    rows_digest: npt.NDArray[np.uint8] | None


class RecordedEpisode:
    """One episode of a trace."""

    def __init__(self, episode: Episode) -> None:
        self.stored = episode
        self.info = episode.info
        cameras = episode.info.attributes.get("cameras", {})
        self._cameras = {view: Camera.from_json(data) for view, data in cameras.items()}

    def __len__(self) -> int:
        return int(self.info.steps)

    def step(self, index: int, reduction: Reduction | None = None) -> RecordedStep:
        """Read step `index`, with the scores under `reduction` if one is given.

        Raises TraceError if a part is missing that the replay cannot do without.
        """
        samples = self._optional(keys.ACTION_SAMPLES, index)
        return RecordedStep(
            index=index,
            observation=recorded_observation(self.stored, index, self._cameras),
            draws=recorded_draws(self.stored, index),
            unclipped=None if samples is None else samples[-1],
            action=self._optional(keys.ACTION_POLICY, index),
            scores=None if reduction is None else self.scores(index, reduction),
            rows_digest=self._optional(keys.ROWS_DIGEST, index),
        )

    def steps(self, reduction: Reduction | None = None) -> Iterator[RecordedStep]:
        """All steps in order, with the scores under `reduction` if one is given."""
        return (self.step(index, reduction) for index in range(len(self)))

    def scores(self, index: int, reduction: Reduction) -> Scores:
        """Stored scores of step `index`; raises TraceError naming the reduction if there are none."""
        return recorded_scores(self.stored, index, reduction)

    def patch(self, index: int) -> npt.NDArray[np.int32] | None:
        """(N_3D,) patch of every point token in pass 0 of step `index`; None if the trace has none."""
        patches = self._optional(keys.POINT_PATCH, index)
        return None if patches is None else patches[0]

    def _optional(self, key: str, index: int) -> npt.NDArray[Any] | None:
        return self.stored.read(key, index) if key in self.stored else None


class TraceSource:
    """A trace opened for replay."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.trace = Trace.open(self.path)
        kind = self.trace.attributes.get("kind")
        if kind != "full":
            raise TraceError(
                f"{self.path}: a trace of kind {kind!r} cannot be replayed under other configurations; "
                "record an unpruned run (kind 'full')"
            )

    @cached_property
    def execution(self) -> dict[str, Any]:
        """How the recorded forward passes were computed."""
        return dict(self.trace.attributes["execution"])

    def episodes(self, wanted: Sequence[str] = ()) -> tuple[RecordedEpisode, ...]:
        """The episodes named in `wanted`, in that order, or all; raises TraceError naming those that are there."""
        known = [info.id for info in self.trace.episodes]
        for name in wanted:
            if wanted.count(name) > 1:
                raise TraceError(f"{self.path}: episode {name!r} is asked for twice; name each once")
            if name not in known:
                raise TraceError(f"{self.path}: no episode {name!r}; it has: {', '.join(known) or 'none'}")
        if not known:
            raise TraceError(f"{self.path}: the trace has no committed episode; record one first")
        return tuple(RecordedEpisode(self.trace.episode(name)) for name in (wanted or known))

    def policy(self, spec: str | None, precision: Precision) -> Policy:
        """The recorded policy, or `spec` in its place; raises PolicyError if its weights are not the recorded ones."""
        recorded = self.trace.attributes["policy"]
        policy = load_policy(spec or recorded["name"], precision)
        found = policy.identity
        for what, ours, theirs in (
            ("weights", found.weights_digest, recorded["weights_digest"]),
            ("configuration", found.config_digest, recorded["config_digest"]),
        ):
            if ours != theirs:
                raise PolicyError(
                    f"{self.path}: recorded with policy {recorded['name']!r}, {what} {theirs[:12]}, but {found.name!r} "
                    f"has {ours[:12]}; give the recorded policy with --policy NAME or DIR"
                )
        return policy
