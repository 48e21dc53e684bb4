"""Controls: what a policy must fail at for its success to mean that it looks and listens.

`no_visual`, `no_image` and `no_points` drop every token of both modalities or of one, at every step, by the engine's
own way of dropping rows. `wrong_instruction` names the twin's colour. `blind` runs the policy that was trained without
eyes on the same demonstrations; it is shown no visual token in any other row either.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from tracekit.config import Configuration, ExecutionConfig, ReuseConfig
from tracekit.errors import ConfigError
from tracekit.pruning import Decision, DecisionKey, Pruner, Shape

__all__ = ["CONTROLS", "Case", "control_case", "swap_colours", "unpruned"]

Control = Literal["blind", "no_visual", "no_image", "no_points", "wrong_instruction"]
CONTROLS: tuple[str, ...] = get_args(Control)


@dataclass(frozen=True, slots=True)
class _DropConfig:
    modalities: Literal["both", "2d", "3d"] = "both"


def _initial_state(_config: _DropConfig, _shape: Shape) -> None:
    """Nothing is remembered."""


def _decide(
    _seen: None, state: None, config: _DropConfig, _key: DecisionKey, shape: Shape, **_: Any
) -> tuple[Decision, None]:
    keep_2d = np.full(shape.n_2d, config.modalities == "3d")
    keep_3d = np.full(shape.n_3d, config.modalities == "2d") if shape.n_3d else None
    return Decision(keep_2d, None, keep_3d_tokens=keep_3d), state


_DROPPED: dict[str, Literal["both", "2d", "3d"]] = {
    "blind": "both",
    "no_visual": "both",
    "no_image": "2d",
    "no_points": "3d",
}

_DROP = Pruner(
    kind="drop",
    config=_DropConfig,
    observes="none",
    reads="nothing",
    requires=lambda _config: frozenset(),
    initial_state=_initial_state,
    decide=_decide,
)


@dataclass(frozen=True)
class _DropEverything(Configuration):
    """A configuration no file can name: dropping whole modalities is a control and no method."""

    kind: str = "drop"
    pruner: Any = field(default_factory=_DropConfig)

    @property
    def method(self) -> Pruner:
        """See `_DROP`."""
        return _DROP


@dataclass(frozen=True, slots=True)
class Case:
    """One row of a table: `policy` (name or directory) under `configuration`, told the truth or not.

    `must_be_blind`: the row means nothing for a policy that has eyes, and is refused for it.
    """

    name: str
    configuration: Configuration
    policy: str
    wrong_instruction: bool = False
    must_be_blind: bool = False

    def with_threads(self, threads: int) -> Case:
        """The same row computed with `threads` threads."""
        execution = replace(self.configuration.execution, threads=threads)
        return replace(self, configuration=replace(self.configuration, execution=execution))

    def without_eyes(self) -> Case:
        """The same row with every visual token dropped: how a policy that was trained blind has to be run."""
        return replace(self, configuration=_dropping(self.name, "both", self.configuration))


def unpruned() -> Configuration:
    """All tokens, prefix computed once per control step: what is cheap enough to run by the hundred on a CPU."""
    return Configuration(
        name="unpruned", reuse=ReuseConfig("prefix_kv", "pinned"), execution=ExecutionConfig(threads=1)
    )


def control_case(control: str, policy: str, blind: str | None, like: Configuration | None = None) -> Case:
    """The row of `control` for `policy`; `blind` is the directory of the policy without eyes, if there is one.

    It is computed (reuse, arithmetic) as `like` is, by default as `unpruned()`, so that the two differ in the control
    alone. Raises ConfigError for an unknown control and for `blind` without such a policy.
    """
    base = like or unpruned()
    if control == "wrong_instruction":
        return Case(control, _unpruned_like(control, base), policy, wrong_instruction=True)
    if control not in _DROPPED:
        raise ConfigError(f"--control {control}: choose one of {', '.join(CONTROLS)}")
    if control == "blind" and blind is None:
        raise ConfigError(
            "--control blind: no blind policy at hand; train one with `tracekit train --blind`, give --blind"
        )
    config = _dropping(control, _DROPPED[control], base)
    if control == "blind" and blind:
        return Case(control, config, blind, must_be_blind=True)
    return Case(control, config, policy)


def _dropping(name: str, modalities: Literal["both", "2d", "3d"], like: Configuration) -> Configuration:
    return _DropEverything(name, pruner=_DropConfig(modalities), reuse=_reuse(like), execution=like.execution)


def _unpruned_like(name: str, like: Configuration) -> Configuration:
    return Configuration(name, reuse=_reuse(like), execution=like.execution)


def _reuse(like: Configuration) -> ReuseConfig:
    """The reuse of `like`; a cache out of which rows are cut needs a pruner that looks, so here none is cut."""
    return replace(like.reuse, kv="reprefill")


def swap_colours(instruction: str, colours: Sequence[str]) -> str:
    """`instruction` with the first of `colours` replaced by the second; ConfigError if it does not name the first."""
    asked, other = colours
    changed, count = re.subn(rf"\b{re.escape(asked)}\b", other, instruction)
    if count == 0:
        raise ConfigError(f"instruction {instruction!r} does not name the colour {asked!r}; it cannot be made wrong")
    return changed
