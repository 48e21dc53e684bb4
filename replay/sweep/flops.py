"""Operations of the language model in one control step, from how many visual tokens each denoise pass keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit.errors import TracekitError
from tracekit.layout import TokenLayout
from tracekit.policy import Precision, load_policy

__all__ = ["ModelSize", "model_size", "step_flops"]

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Widths of a LLaMA decoder. `layers` of `weights` multiplications per row each, and attention over `hidden`."""

    layers: int
    hidden: int
    weights: int

    def flops(self, rows: Any, held: Any) -> Any:
        """Multiplications and additions for `rows` rows that follow `held` cached ones; numbers or arrays."""
        return self.layers * (2 * rows * self.weights + 4 * (rows * held + rows * (rows + 1) / 2) * self.hidden)


def model_size(policy: str) -> ModelSize | None:
    """Widths of the policy called `policy`; None for one that cannot be loaded, or does not say them."""
    try:
        config = getattr(load_policy(policy, Precision()), "config", None)
        hidden, wide = int(config.hidden_size), int(config.intermediate_size)  # type: ignore[union-attr]  # None raises
        kv_width = int(config.kv_heads) * hidden // int(config.heads)  # type: ignore[union-attr]
        return ModelSize(int(config.layers), hidden, 2 * hidden * hidden + 2 * hidden * kv_width + 3 * hidden * wide)  # type: ignore[union-attr]
    except (AttributeError, TracekitError):
        return None


def step_flops(size: ModelSize, layout: TokenLayout, kept: npt.NDArray[np.integer[Any]], reuse: str) -> Numbers:
    """(…,) operations per control step; `kept` (…, passes): visual tokens of every denoise pass.

    `reuse`: kind of the configuration. Without a kept prefix every pass computes all of its rows; with `prefix_kv` the
    prefix is computed when the kept tokens differ from those of the pass before, and every pass computes the tail.
    The vocabulary head and the encoders are no part of it.
    """
    others = layout.prefix_length - len(layout.visual_positions)
    tail = layout.span("action").stop - layout.prefix_length  # what follows the action is inert
    rows = kept.astype(np.float64) + others
    if reuse != "prefix_kv":
        whole = layout.length - layout.prefix_length
        return np.asarray(size.flops(rows + whole, 0.0).sum(-1), np.float64)
    fresh = np.ones(rows.shape, np.bool_)
    fresh[..., 1:] = rows[..., 1:] != rows[..., :-1]
    prefill = np.where(fresh, size.flops(rows, 0.0), 0.0)
    return np.asarray((prefill + size.flops(float(tail), rows)).sum(-1), np.float64)
