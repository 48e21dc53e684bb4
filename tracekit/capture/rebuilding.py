"""The arithmetic of rebuilt rows: softmax(q·kᵀ/√d) for a few query rows, many layers or passes at a time.

The products are made layer by layer, straight on the keys where they lie; all the rest runs once over the stack,
because on small models it is the number of calls that costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from tracekit.capture.calls import apply_rotary

__all__ = ["LayerRows", "TailRows", "full_precision", "probabilities", "received_later"]

Rotary = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class LayerRows:
    """Query rows of one layer, (r, heads·d), not rotated, and what they attend to: rotated `keys` (kv_heads, n, d)."""

    layer: int
    query: Tensor
    keys: Tensor
    scale: float
    bias: Tensor


@dataclass(frozen=True, slots=True)
class TailRows:
    """Query rows of one layer in one denoise pass over a cached prefix.

    `held`: (kv_heads, n, d) rotated keys of the prefix, in place; `own`: (kv_heads, t, d) rotated keys of the tail, a
    copy, because the next pass overwrites them.
    """

    layer: int
    query: Tensor
    held: Tensor
    own: Tensor
    scale: float


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Keeps autocast, which the observed model may run under, away from the arithmetic of rebuilt rows."""
    if not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def probabilities(layers: Sequence[LayerRows], rotary: Rotary) -> Tensor:
    """(layers, heads, r, n) float32 attention of the rows, rotated by `rotary` (each (r, d)), over all their keys."""
    size = layers[0].keys.shape[-1]
    stacked = torch.stack([one.query for one in layers])
    rows = stacked.shape[1]
    heads = stacked.shape[-1] // size
    q = apply_rotary(stacked.view(len(layers), rows, heads, size).transpose(1, 2), *rotary)
    logits = q.new_empty(len(layers), heads, rows, layers[0].keys.shape[1])
    for place, one in enumerate(layers):
        logits[place] = _product(q[place], one.keys).mul_(one.scale).add_(one.bias)
    return torch.softmax(logits, -1)


def received_later(
    passes: Sequence[Sequence[TailRows]], rotary: Rotary, bias: Tensor, columns: Tensor, kept: slice
) -> Tensor:
    """(passes, layers, m) attention at the prefix's `columns`, mean over heads and the rows `kept`, of several passes.

    `rotary`: each (r, d), `bias`: (1, r, t) for the tail's own keys; the same in every pass, as its positions are.
    """
    layers, first = len(passes[0]), passes[0][0]
    size, count, own = first.held.shape[-1], first.held.shape[1], first.own.shape[1]
    stacked = torch.stack([torch.stack([one.query for one in single]) for single in passes], dim=1)
    rows, heads = stacked.shape[2], stacked.shape[-1] // size
    q = apply_rotary(stacked.view(layers, len(passes), rows, heads, size).transpose(2, 3), *rotary)
    logits = q.new_empty(layers, len(passes), heads, rows, count + own)
    for layer in range(layers):
        held, scale = passes[0][layer].held, passes[0][layer].scale
        # all passes look at the same prefix: one product for all of them
        together = q[layer].transpose(0, 1).reshape(heads, len(passes) * rows, size)
        over_prefix = _product(together, held).view(heads, len(passes), rows, count).transpose(0, 1)
        tails = torch.stack([single[layer].own for single in passes]).float()
        kv = tails.shape[1]
        over_tail = q[layer].reshape(len(passes), kv, heads // kv * rows, size) @ tails.transpose(-1, -2)
        logits[layer, ..., :count] = over_prefix.mul_(scale)
        logits[layer, ..., count:] = over_tail.view(len(passes), heads, rows, own).mul_(scale).add_(bias)
    return torch.softmax(logits, -1)[:, :, :, kept][..., columns].mean((2, 3)).transpose(0, 1)


def _product(q: Tensor, keys: Tensor) -> Tensor:
    """(heads, r, n) products of `q` (heads, r, d) with `keys` (kv_heads, n, d), neighbouring heads sharing one."""
    heads, rows, size = q.shape
    kv = keys.shape[0]
    grouped = q.reshape(kv, heads // kv * rows, size)
    return (grouped @ keys.float().transpose(-1, -2)).view(heads, rows, keys.shape[1])
