"""Reads what a replay feeds on out of a trace: observations, random draws, and what the recorded run answered."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit import keys
from tracekit.actions import ActionSpec
from tracekit.camera import Camera
from tracekit.config import Configuration
from tracekit.engine import StepDraws, decision_shape
from tracekit.errors import PolicyError, TraceError
from tracekit.layout import TokenLayout
from tracekit.observation import Observation
from tracekit.policy import Policy, Precision, load_policy
from tracekit.pruning import Observables, Reduction, Scores, reduce
from tracekit.pruning.points import nearest_patches
from tracekit.records import (
    recorded_displacement_m,
    recorded_draws,
    recorded_observables,
    recorded_observation,
    recorded_scores,
    recorded_step_number,
)
from tracekit.samples import packaged_trace
from tracekit.store import Episode, Trace

__all__ = ["RecordedEpisode", "RecordedStep", "TraceSource"]


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """One recorded control step, 0-based `index` within its episode. What the trace lacks is None.

    `number`: the 1-based control step that it was; beyond index + 1 where earlier steps were not recorded. `seen`: what
    its unpruned pass 0 showed, in the form that a pruner reads. `kept`: (passes, N_visual) tokens that were there, of a
    step that was pruned while it was recorded. `displacement_m`: the translation executed before.
    """

    index: int
    number: int
    observation: Observation
    draws: StepDraws
    unclipped: npt.NDArray[np.float32] | None
    action: npt.NDArray[np.float64] | None
    seen: Scores | Observables | None
    rows_digest: npt.NDArray[np.uint8] | None
    kept: npt.NDArray[np.bool_] | None = None
    displacement_m: float | None = None


class RecordedEpisode:
    """One episode of a trace."""

    def __init__(self, episode: Episode, action_spec: ActionSpec) -> None:
        self.stored = episode
        self._action_spec = action_spec
        self.info = episode.info
        cameras = episode.info.attributes.get("cameras", {})
        self._cameras = {view: Camera.from_json(data) for view, data in cameras.items()}
        self._observed: tuple[int, Observation] | None = None

    def __len__(self) -> int:
        return int(self.info.steps)

    def step(self, index: int, config: Configuration | None = None, *, shown: bool = False) -> RecordedStep:
        """Read step `index` for a replay under `config`; with what its pass 0 showed, if it is to be `shown`.

        Raises TraceError if a part is missing that the replay cannot do without.
        """
        samples = self._optional(keys.ACTION_SAMPLES, index)
        moved = None
        if config is not None and "displacement_m" in config.method.requires(config.pruner):
            moved = recorded_displacement_m(self.stored, index, self._action_spec)
        return RecordedStep(
            index=index,
            number=self.number(index),
            observation=self._observation(index),
            draws=recorded_draws(self.stored, index),
            unclipped=None if samples is None else samples[-1],
            action=self._optional(keys.ACTION_POLICY, index),
            seen=self.seen(index, config) if shown and config is not None else None,
            rows_digest=self._optional(keys.ROWS_DIGEST, index),
            kept=self._optional(keys.KEPT, index),
            displacement_m=moved,
        )

    def steps(self, config: Configuration | None = None, *, shown: bool = False) -> Iterator[RecordedStep]:
        """All steps in order; see `step`.

        Raises TraceError where `config` remembers steps that were not recorded, or must be shown unpruned passes and
        the episode was pruned while it was recorded.
        """
        if config is not None:
            self.refuse_gaps(config)
        if shown and self.pruned_live:
            raise TraceError(
                f"episode {self.info.id!r} was pruned while it was recorded, so its passes show the kept tokens only; "
                'observe.feedback = "recorded" needs an unpruned recording, use "own"'
            )
        return (self.step(index, config, shown=shown) for index in range(len(self)))

    @property
    def pruned_live(self) -> bool:
        """Whether the episode was pruned while it was recorded."""
        return keys.KEPT in self.stored

    def number(self, index: int) -> int:
        """The 1-based control step of row `index`."""
        return recorded_step_number(self.stored, index)

    def seen(self, index: int, config: Configuration) -> Scores | Observables | None:
        """What the configured pruner reads of step `index`; raises TraceError naming what was not stored."""
        if config.method.reads == "scores":
            return self.scores(index, config.reduction)
        if config.method.reads == "observables":
            required = config.method.requires(config.pruner)
            return recorded_observables(self.stored, index, required, self._action_spec)
        return None

    def refuse_gaps(self, config: Configuration) -> None:
        """Raise TraceError where `config` remembers earlier steps, and one of them was not recorded."""
        shape = decision_shape(TokenLayout.from_json(self.info.attributes["layout"]))
        remembers = config.method.initial_state(config.pruner, shape) is not None
        lagged = config.method.observes == "forward" and config.observe.mode == "lagged"
        if not remembers and not lagged and config.reuse.kind not in {"mask", "skip_frame"}:
            return
        for index in range(len(self)):
            if self.number(index) != index + 1:
                raise TraceError(
                    f"episode {self.info.id!r}: control step {index + 1} was not recorded (dropped or left out), and "
                    f"configuration {config.name!r} remembers earlier steps; leave this episode out, or record with "
                    'overflow = "block"'
                )

    def scores(self, index: int, reduction: Reduction) -> Scores:
        """Scores of step `index`: the stored ones, or, for a reduction that was not stored, of the stored observables.

        Raises TraceError naming what the reduction reads and the trace lacks.
        """
        if self.pruned_live or keys.score(reduction.digest, "norm_2d") in self.stored:
            return recorded_scores(self.stored, index, reduction)
        layout = TokenLayout.from_json(self.info.attributes["layout"])
        required = {"norms", "attention"} | ({"attention_action"} if reduction.passes != "first" else set())
        seen = recorded_observables(self.stored, index, frozenset(required), self._action_spec)
        if reduction.correspondence == "nearest":
            seen = dataclasses.replace(seen, nearest_patch=self.patch(index, reduction))
        return reduce(seen, reduction, decision_shape(layout))

    def patch(self, index: int, reduction: Reduction | None = None) -> npt.NDArray[np.int32] | None:
        """(N_3D,) the first of `patches`."""
        patches = self.patches(index, reduction)
        return None if patches is None else patches[0]

    def patches(self, index: int, reduction: Reduction | None = None) -> npt.NDArray[np.int32] | None:
        """(passes, N_3D) patch that every point token of step `index` follows; None if the trace has none.

        That into which it projects, or, with a `reduction` whose correspondence is `nearest`, that whose centre ray
        passes nearest where it projects into none; raises TraceError if its centres or all cameras are missing.
        """
        patches = self._optional(keys.POINT_PATCH, index)
        if patches is None or reduction is None or reduction.correspondence != "nearest":
            return patches
        views = TokenLayout.from_json(self.info.attributes["layout"]).views
        cameras = {place: self._cameras[view] for place, view in enumerate(views) if view in self._cameras}
        centres = self.stored.read(keys.POINT_CENTRES, index)
        return np.stack([nearest_patches(*of_pass, cameras) for of_pass in zip(centres, patches, strict=True)])

    def _observation(self, index: int) -> Observation:
        """The same object as long as it is the one asked for last: configurations that take turns read it once."""
        if self._observed is None or self._observed[0] != index:
            self._observed = index, recorded_observation(self.stored, index, self._cameras)
        return self._observed[1]

    def _optional(self, key: str, index: int) -> npt.NDArray[Any] | None:
        return self.stored.read(key, index) if key in self.stored else None


class TraceSource:
    """A trace opened for replay: a path, or the name of one that ships with the package (`sample`)."""

    def __init__(self, path: str | Path) -> None:
        self.path = packaged_trace(path)
        self.trace = Trace.open(self.path)
        kind = self.trace.attributes.get("kind")
        if kind not in {"full", "pruned_live"}:
            raise TraceError(
                f"{self.path}: a trace of kind {kind!r} has no forward passes to replay; record a policy (kind 'full' "
                "or 'pruned_live')"
            )

    @cached_property
    def pruned_by(self) -> Configuration | None:
        """The configuration that pruned the recorded run; None where nothing was pruned."""
        if self.trace.attributes["kind"] == "full":
            return None
        return Configuration.from_table(self.trace.attributes["configuration"], str(self.path))

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
        spec = self.trace.attributes["action_spec"]
        action_spec = ActionSpec(**{item.name: spec[item.name] for item in fields(ActionSpec)})
        return tuple(RecordedEpisode(self.trace.episode(name), action_spec) for name in (wanted or known))

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
