"""When a control step decides: before any pass, after an unpruned pass 0 (`current`), or a step earlier (`lagged`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit.config import Configuration
from tracekit.errors import ConfigError
from tracekit.policy import Policy, Prefix
from tracekit.profiling import StageClock
from tracekit.pruning import Decision, DecisionKey, Observables, Scores, Shape, observed_patches, reduce

__all__ = ["Decider", "LaggedMemory", "keep_everything"]

Seen = Scores | Observables | None


@dataclass(frozen=True, slots=True)
class LaggedMemory:
    """A lagged pruner's memory: its state, what the last step's pass 0 showed, and of which patches (None: all)."""

    state: Any
    seen: Seen
    observed: npt.NDArray[np.bool_] | None


class Decider:
    """Asks the pruner at the right moment of one control step and carries its memory.

    `memory` is None at the start of an episode. `recorded`: with `observe.feedback = "recorded"`, what an unpruned
    forward pass of this step would have shown, from the trace.
    """

    def __init__(
        self,
        policy: Policy,
        config: Configuration,
        key: DecisionKey,
        shape: Shape,
        memory: Any,
        clock: StageClock,
        recorded: Seen,
    ) -> None:
        self._config, self._method, self._key, self._shape = config, config.method, key, shape
        self._clock, self._recorded = clock, recorded
        self.mode = config.observe.mode if self._method.observes == "forward" else "none"
        _refuse_unfit(policy, config, self.mode)
        if self.mode == "lagged" and not self.watches and recorded is None:
            raise ConfigError(
                'observe.feedback = "recorded" needs a recording to be shown, and a live run has none; use "own"'
            )
        if memory is None:
            memory = self._method.initial_state(config.pruner, shape)
            memory = LaggedMemory(memory, None, None) if self.mode == "lagged" else memory
        self.memory: Any = memory

    @property
    def watches(self) -> bool:
        """Whether pass 0 must be observed."""
        return self.mode == "current" or (self.mode == "lagged" and self._config.observe.feedback == "own")

    @property
    def governs_from(self) -> int:
        """The first pass that the decision governs."""
        return 1 if self.mode == "current" else 0

    def before(self, prefix: Prefix) -> Decision:
        """What pass 0 runs under."""
        if self.mode == "none":
            decision, self.memory = self._ask(None, self.memory, prefix)
            return decision
        if self.mode == "current":
            return keep_everything(self._shape)
        memory: LaggedMemory = self.memory
        decision, state = self._ask(memory.seen, memory.state, prefix, memory.observed)
        self.memory = LaggedMemory(state, self._recorded, None)
        return keep_everything(self._shape) if self._config.observe.refreshes(self._key.step) else decision

    def after(
        self, observables: Observables, prefix: Prefix, decision: Decision, kept: npt.NDArray[np.bool_]
    ) -> Decision:
        """What the later passes run under, once pass 0 has shown `observables` with the `kept` (N_visual,) tokens."""
        with self._clock.stage("observe"):
            seen: Seen = observables
            if self._method.reads == "scores":
                seen = reduce(observables, self._config.pruner.reduction, self._shape)
        if self.mode == "current":
            decision, self.memory = self._ask(seen, self.memory, prefix)
            return decision
        observed = None if bool(kept.all()) else self._observed(kept, prefix)
        self.memory = LaggedMemory(self.memory.state, seen, observed)
        return decision

    def _ask(
        self, seen: Seen, state: Any, prefix: Prefix, observed: npt.NDArray[np.bool_] | None = None
    ) -> tuple[Decision, Any]:
        return self._method.decide(
            seen,
            state,
            self._config.pruner,
            self._key,
            self._shape,
            observed=observed,
            patch=None if prefix.alignment is None else prefix.alignment.patch,
            stage=self._clock.stage,
        )

    def _observed(self, kept: npt.NDArray[np.bool_], prefix: Prefix) -> npt.NDArray[np.bool_]:
        keep_2d, keep_3d = kept[: self._shape.n_2d], kept[self._shape.n_2d :]
        patch = np.zeros(0, np.int32) if prefix.alignment is None else prefix.alignment.patch
        return observed_patches(keep_2d, keep_3d, patch)


def keep_everything(shape: Shape) -> Decision:
    """The decision of a step that runs unpruned."""
    return Decision(
        keep_2d=np.ones(shape.n_2d, bool),
        keep_3d_patches=np.ones(shape.n_2d, bool) if shape.n_3d else None,
        pruned=False,
    )


def _refuse_unfit(policy: Policy, config: Configuration, mode: str) -> None:
    if config.method.observes in {"embeddings", "in_network"}:
        raise ConfigError(
            f"pruner {config.kind!r} decides inside the network, which no forward replay supports yet; "
            "its decisions can be taken from the package's API"
        )
    if mode == "current" and policy.passes < 2:
        raise ConfigError(
            f'observe.mode = "current" needs at least 2 denoise passes and this policy has {policy.passes}: '
            'pass 0 is the one observed, unpruned; use observe.mode = "lagged"'
        )
