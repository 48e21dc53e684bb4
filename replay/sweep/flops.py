"""Operations of the language model in one control step, from how many visual tokens each denoise pass keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit.config import Configuration, ReuseConfig
from tracekit.errors import TracekitError
from tracekit.layout import TokenLayout
from tracekit.policy import Precision, load_policy

__all__ = ["ModelSize", "countable", "model_size", "step_flops"]

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


def model_size(policy: str, config_digest: str) -> ModelSize | None:
    """Widths of the policy called `policy`; None for one that cannot be loaded, or does not say them.

    `config_digest`: of the recorded policy; None too for another one.
    """
    try:
        loaded = load_policy(policy, Precision())
        if loaded.identity.config_digest != config_digest:
            return None
        config: Any = getattr(loaded, "config", None)
        hidden, wide = int(config.hidden_size), int(config.intermediate_size)
        kv_width = int(config.kv_heads) * hidden // int(config.heads)
        return ModelSize(int(config.layers), hidden, 2 * hidden * hidden + 2 * hidden * kv_width + 3 * hidden * wide)
    except (AttributeError, TracekitError):
        return None


def countable(config: Configuration) -> bool:
    """Whether `step_flops` says what `config` computes: it counts rows that are dropped before the first layer."""
    steps_run = config.reuse.kind in {"none", "encoders", "prefix_kv"}
    return steps_run and config.execution.drop == "rows" and config.method.observes != "in_network"


def step_flops(size: ModelSize, layout: TokenLayout, kept: npt.NDArray[np.integer[Any]], reuse: ReuseConfig) -> Numbers:
    """(…,) operations per control step; `kept` (…, passes): visual tokens of every denoise pass.

    Without a kept prefix every pass computes all of its rows; with `prefix_kv` the prefix is computed when the kept
    tokens differ from those of the pass before (with `kv = drop` only once), and every pass computes the tail. The
    vocabulary head and the encoders are no part of it.
    """
    others = layout.prefix_length - len(layout.visual_positions)
    tail = layout.span("action").stop - layout.prefix_length  # what follows the action is inert
    rows = kept.astype(np.float64) + others
    if reuse.kind != "prefix_kv":
        whole = layout.length - layout.prefix_length
        return np.asarray(size.flops(rows + whole, 0.0).sum(-1), np.float64)
    fresh = np.ones(rows.shape, np.bool_)
    fresh[..., 1:] = rows[..., 1:] != rows[..., :-1] if reuse.kv == "reprefill" else False
    prefill = np.where(fresh, size.flops(rows, 0.0), 0.0)
    return np.asarray((prefill + size.flops(float(tail), rows)).sum(-1), np.float64)
