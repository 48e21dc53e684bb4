"""FastV (arXiv 2403.06764) per modality: after layer K, the most attended tokens are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tracekit.pruning.base import Decision, DecisionKey, Pruner, Shape, StageTimer, untimed
from tracekit.pruning.observables import Observables
from tracekit.pruning.options import check_choices, check_range
from tracekit.pruning.ranking import group_mean, keep_top, layer_of, part

__all__ = ["FASTV", "FastVConfig"]


@dataclass(frozen=True, slots=True)
class FastVConfig:
    """When and by what to rank.

    `rate`: share of each modality's tokens to prune. `layer`: K; tokens are dropped after block K (0-based), by the
    attention of block K - 1, the mean over heads. `query`: whose attention: the `last_row` of the text, the mean of the
    `action` rows, or the mean of the `text` rows. Decided in denoise pass 0, fixed for the step.
    """

    rate: float = 0.5
    layer: int = 2
    query: Literal["last_row", "action", "text"] = "last_row"

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, "rate", 0, 1, "the share of tokens to prune", open_end=True)
        check_range(self, "layer", 1, 10_000, "a layer index, and the attention of the layer before it is read")


def _scores(seen: Observables, config: FastVConfig) -> npt.NDArray[np.floating[Any]]:
    """(N,) attention that every visual token received in layer K - 1."""
    if config.query == "last_row":
        rows = part(seen, "last_row", "fastv")
        return np.asarray(rows[layer_of(len(rows), config.layer - 1, "layer")])
    layer = layer_of(len(seen.attention), config.layer - 1, "layer")
    return group_mean(seen, layer, config.query, "fastv")


def _decide(
    seen: Observables,
    state: None,
    config: FastVConfig,
    _key: DecisionKey,
    shape: Shape,
    *,
    stage: StageTimer = untimed,
    **_: Any,
) -> tuple[Decision, None]:
    with stage("fuse"):
        return keep_top(_scores(seen, config), config.rate, shape), state


def _decide_at(
    layer: int, seen: Observables, state: None, config: FastVConfig, key: DecisionKey, shape: Shape
) -> Decision | None:
    return _decide(seen, state, config, key, shape)[0] if layer == config.layer else None


FASTV = Pruner(
    kind="fastv",
    config=FastVConfig,
    observes="in_network",
    reads="observables",
    requires=lambda config: frozenset({"last_row" if config.query == "last_row" else "attention"}),
    initial_state=lambda _config, _shape: None,
    decide=_decide,
    needs_pinned_fps=lambda _config: True,
    behind=lambda config: config.layer,
    decide_at=_decide_at,
    remember=lambda _seen, state, _config, _shape: state,
)
