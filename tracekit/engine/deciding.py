"""When a control step decides: before any pass, after an unpruned pass 0 (`current`), a step earlier (`lagged`), or in
the middle of pass 0; and, where masks are reused, at which steps at all.
"""  # noqa: D205  # one sentence

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tracekit.config import Configuration
from tracekit.engine.result import Captured, StepResult
from tracekit.errors import ConfigError
from tracekit.profiling import StageClock
from tracekit.pruning import Decision, DecisionKey, Observables, Scores, Shape, observed_patches, reduce
from tracekit.pruning.base import StageTimer, untimed

__all__ = [
    "Decider",
    "FrameMemory",
    "HeldMemory",
    "LaggedMemory",
    "Seen",
    "keep_everything",
    "observed_when",
    "pruner_state",
    "reduced",
    "repeated",
]

Seen = Scores | Observables | None
Mode = Literal["none", "current", "lagged", "in_network"]
Patch = npt.NDArray[np.int32] | None


@dataclass(frozen=True, slots=True)
class LaggedMemory:
    """A lagged pruner's memory: its state, what the last step's pass 0 showed, and of which patches (None: all)."""

    state: Any
    seen: Seen
    observed: npt.NDArray[np.bool_] | None


@dataclass(frozen=True, slots=True)
class HeldMemory:
    """With `reuse = mask`: the memory without it, and the decision that stays until the next (None: none was taken)."""

    memory: Any
    decision: Decision | None


@dataclass(frozen=True, slots=True)
class FrameMemory:
    """With `reuse = skip_frame`: the memory without it, and the result that the next step repeats (None: it runs)."""

    memory: Any
    last: StepResult | None


class Decider:
    """Asks the pruner at the right moment of one control step and carries its memory.

    The same object decides in a forward pass and from stored scores: a step is `before`, then, where `watches` says so,
    `after` (or `inside`, then `remember`, for a pruner that decides inside the network).

    `memory` is None at the start of an episode. `recorded`: with `observe.feedback = "recorded"`, what an unpruned
    forward pass of this step would have shown, from the trace. `stage` times the parts of a decision.
    """

    def __init__(
        self,
        config: Configuration,
        key: DecisionKey,
        shape: Shape,
        memory: Any,
        recorded: Seen = None,
        stage: StageTimer = untimed,
    ) -> None:
        self._config, self._method, self._key, self._shape = config, config.method, key, shape
        self._stage, self._recorded = stage, recorded
        self.mode: Mode = _mode(config)
        self._holds = config.reuse.kind == "mask"
        self._held: Decision | None = None
        if self.mode == "lagged" and config.observe.feedback == "recorded" and recorded is None:
            raise ConfigError(
                'observe.feedback = "recorded" needs a recording to be shown, and a live run has none; use "own"'
            )
        if self._holds and memory is not None:
            memory, self._held = memory.memory, memory.decision
        if memory is None:
            memory = self._method.initial_state(config.pruner, shape)
            memory = LaggedMemory(memory, None, None) if self.mode == "lagged" else memory
        self._memory: Any = memory
        self._taken = not self._holds or (key.step - 2) % config.observe.refresh_every == 0
        self._refreshes = config.refreshes(key.step)

    @property
    def memory(self) -> Any:
        """The memory after what has been done so far of this step."""
        return HeldMemory(self._memory, self._held) if self._holds else self._memory

    @property
    def watches(self) -> bool:
        """Whether pass 0 must be observed."""
        if self.mode == "current":
            return self._taken or self._held is None
        if self.mode == "lagged":
            return self._config.observe.feedback == "own" and (not self._holds or self._refreshes)
        return self.mode == "in_network"

    @property
    def governs_from(self) -> int:
        """The first pass that the decision governs."""
        return 1 if self.mode == "current" and self.watches else 0

    def before(self, patch: Patch) -> Decision:
        """What pass 0 runs under; inside the network, up to where it is decided. `patch`: (N_3D,) of its points."""
        if self.mode == "lagged":
            return self._before_lagged(patch)
        if self.watches:
            return keep_everything(self._shape)
        if self.mode == "none" and self._taken:
            decision, self._memory = self._ask(None, self._memory, patch)
            return self._hold(decision)
        return self._held or keep_everything(self._shape)

    def after(
        self,
        seen: Seen,
        kept: npt.NDArray[np.bool_],
        patch: Patch,
        decision: Decision,
        observed: npt.NDArray[np.bool_] | None = None,
    ) -> Decision:
        """What the later passes run under, once pass 0 showed `seen` of the `kept` (N_visual,) tokens.

        `observed`: (N_2D,) patches whose tokens were all kept, where that is known from a recording.
        """
        if self.mode != "lagged":
            decision, self._memory = self._ask(seen, self._memory, patch)
            return self._hold(decision) if self._taken else keep_everything(self._shape)
        if bool(kept.all()):
            observed = None
        elif observed is None:
            observed = self._observed(kept, patch)
        self._memory = LaggedMemory(self._memory.state, seen, observed)
        return decision

    def inside(self, layer: int, seen: Observables) -> Decision:
        """The decision behind block `layer` of pass 0, from what its blocks up to there showed."""
        decide_at = self._method.decide_at
        with self._stage("fuse"):
            decision = decide_at and decide_at(layer, seen, self._memory, self._config.pruner, self._key, self._shape)
        if decision is None:
            raise ConfigError(f"pruner {self._config.kind!r} gave no decision behind block {layer}, which it names")
        return decision

    def remember(self, seen: Observables | None) -> None:
        """Take the whole step into the memory of a pruner that decides inside the network."""
        if seen is not None and self._method.remember is not None:
            self._memory = self._method.remember(seen, self._memory, self._config.pruner, self._shape)

    def _before_lagged(self, patch: Patch) -> Decision:
        memory: LaggedMemory = self._memory
        decision, state = self._held, memory.state
        if self._taken:
            decision, state = self._ask(memory.seen, state, patch, memory.observed)
            self._hold(decision)
        self._memory = LaggedMemory(state, self._recorded, None)
        return keep_everything(self._shape) if self._refreshes or decision is None else decision

    def _hold(self, decision: Decision) -> Decision:
        self._held = decision
        return decision

    def _ask(
        self, seen: Seen, state: Any, patch: Patch, observed: npt.NDArray[np.bool_] | None = None
    ) -> tuple[Decision, Any]:
        return self._method.decide(
            seen,
            state,
            self._config.pruner,
            self._key,
            self._shape,
            observed=observed,
            patch=patch,
            stage=self._stage,
        )

    def _observed(self, kept: npt.NDArray[np.bool_], patch: Patch) -> npt.NDArray[np.bool_]:
        keep_2d, keep_3d = kept[: self._shape.n_2d], kept[self._shape.n_2d :]
        return observed_patches(keep_2d, keep_3d, np.zeros(0, np.int32) if patch is None else patch)


def keep_everything(shape: Shape) -> Decision:
    """The decision of a step that runs unpruned."""
    return Decision(
        keep_2d=np.ones(shape.n_2d, bool),
        keep_3d_patches=np.ones(shape.n_2d, bool) if shape.n_3d else None,
        pruned=False,
    )


def repeated(memory: FrameMemory, clock: StageClock) -> StepResult:
    """The result of a step that runs nothing and repeats the action before it, which there must be."""
    if memory.last is None:
        raise ValueError("there is no step to repeat")
    return replace(
        memory.last,
        memory=memory,
        times_ns=clock.times_ns,
        wall_ns=clock.elapsed_ns(),
        captured=Captured(),
        encoded=(),
        repeated=True,
    )


def reduced(config: Configuration, observables: Observables, shape: Shape) -> Seen:
    """What the configured pruner reads of `observables`: its scores, or themselves."""
    if config.method.reads == "scores":
        return reduce(observables, config.reduction, shape)
    return observables


def observed_when(memory: Any) -> npt.NDArray[np.bool_] | None:
    """(N_2D,) the patches that a lagged pruner was told to have been observed last; None: all, or it is not lagged."""
    while isinstance(memory, HeldMemory | FrameMemory):
        memory = memory.memory
    return memory.observed if isinstance(memory, LaggedMemory) else None


def pruner_state(memory: Any) -> Any:
    """The pruner's own state inside the memory of a run (see `Decider.memory`)."""
    while isinstance(memory, LaggedMemory | HeldMemory | FrameMemory):
        memory = memory.state if isinstance(memory, LaggedMemory) else memory.memory
    return memory


def _mode(config: Configuration) -> Mode:
    if config.method.observes == "in_network":
        return "in_network"
    return config.observe.mode if config.method.observes == "forward" else "none"
