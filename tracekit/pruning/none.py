"""No pruning: the reference that every speed and every deviation is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tracekit.pruning.base import Decision, DecisionKey, Pruner, Shape

__all__ = ["NONE", "NoneConfig"]


@dataclass(frozen=True, slots=True)
class NoneConfig:
    """There is nothing to choose."""


def _decide(
    _seen: None, state: None, _config: NoneConfig, _key: DecisionKey, shape: Shape, **_: Any
) -> tuple[Decision, None]:
    everything = np.ones(shape.n_3d, np.bool_) if shape.n_3d else None
    return Decision(np.ones(shape.n_2d, np.bool_), None, keep_3d_tokens=everything, pruned=False), state


NONE = Pruner(
    kind="none",
    config=NoneConfig,
    observes="none",
    reads="nothing",
    requires=lambda _config: frozenset(),
    initial_state=lambda _config, _shape: None,
    decide=_decide,
)
