"""The arithmetic of rebuilt rows: softmax(q·kᵀ/√d) for a few query rows, many layers or passes at a time.

The products are made layer by layer, straight on the keys where they lie; all the rest runs once over the stack,
because on small models it is the number of calls that costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from tracekit.capture.calls import turn
from tracekit.capture.plan import Places

__all__ = ["LayerRows", "TailRows", "arithmetic", "probabilities", "tail_probabilities"]

Rotary = tuple[Tensor, Tensor]

SMALL = 2**24
"""Multiplications below which a second thread costs more than it brings: waking it takes tens of microseconds."""


@dataclass(frozen=True, slots=True)
class LayerRows:
    """Query rows of one layer, (r, heads·d), not rotated, and what they attend to: rotated `keys` (kv_heads, n, d).

    `bias`: (1 or heads, r, n), added to the logits.
    """

    layer: int
    query: Tensor
    keys: Tensor
    scale: float
    bias: Tensor


@dataclass(slots=True)
class TailRows:
    """What denoise passes over one cached prefix of n rows computed, layer by layer, pass after pass.

    `queries` (t, heads·d) and `keys` (t, kv_heads·d) of the fed rows, not rotated, as they came out (perhaps with a
    leading dimension of 1): passes · layers of them. Of each layer once: `held`, (kv_heads, n, d) rotated keys of the
    prefix, in place, and `scales`.
    """

    layers: list[int]
    queries: list[Tensor]
    keys: list[Tensor]
    held: list[Tensor]
    scales: list[float]


@contextmanager
def arithmetic(device: torch.device, products: int) -> Iterator[None]:
    """Where rebuilt rows are computed: in full precision, whatever autocast or reduced products the model runs under.

    On the CPU by one thread where a layer takes few `products`; per layer, so that its bits do not depend on how many
    layers are taken together.
    """
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    alone = device.type == "cpu" and products < SMALL and threads > 1
    cast = torch.is_autocast_enabled(device.type)
    if alone:
        torch.set_num_threads(1)
    if precision != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False) if cast else nullcontext():
            yield
    finally:
        if alone:
            torch.set_num_threads(threads)
        if precision != "highest":
            torch.set_float32_matmul_precision(precision)


def probabilities(layers: Sequence[LayerRows], rotary: Rotary) -> Tensor:
    """(layers, heads, r, n) float32 attention of the rows over all their keys.

    `rotary`: (r, d) cosine and signed sine (`tracekit.capture.calls.signed`) of the rows.
    """
    first = layers[0]
    rows, size = len(first.query), first.keys.shape[-1]
    q = torch.stack([one.query for one in layers]).float().view(len(layers), rows, -1, size).transpose(1, 2)
    q = _scaled(turn(q, *rotary), [one.scale for one in layers])
    logits = _products(q, [one.keys for one in layers])
    if all(one.bias is first.bias for one in layers):
        logits += first.bias
    else:
        logits += torch.stack([one.bias for one in layers])
    return torch.softmax(logits, -1)


def tail_probabilities(tails: TailRows, rotary: Rotary, wanted: Places, bias: Tensor) -> Tensor:
    """(layers, heads, passes, r, n + t) float32 attention of the `wanted` (r,) rows of all passes.

    `rotary`: (t, d) cosine and signed sine, and `bias`: (1, r, t) for the tail's own keys; the same in every pass, as
    its positions are. The passes look at the same prefix, so one product per layer serves them all.
    """
    kv, count, size = tails.held[0].shape
    layers, rows = len(tails.held), len(wanted)
    passes = len(tails.queries) // layers
    pairs = [part for pair in zip(tails.queries, tails.keys, strict=True) for part in pair]
    together = torch.cat(pairs, -1).float()
    tail = together.shape[-2]
    # (t, passes, layers, heads + kv_heads, d): queries and keys are turned at once
    turned = turn(together.view(tail, passes, layers, -1, size), *(table[:, None, None, None] for table in rotary))
    heads = turned.shape[3] - kv
    q = wanted.along(0, turned[..., :heads, :]).permute(2, 3, 1, 0, 4)
    q = _scaled(q.reshape(layers, heads, passes * rows, size), tails.scales)
    over_prefix = _products(q, tails.held).view(layers, heads, passes, rows, count)
    own = turned[..., heads:, :].permute(2, 3, 1, 4, 0)[:, :, None]
    over_tail = q.view(layers, kv, heads // kv, passes, rows, size) @ own
    over_tail = over_tail.view(layers, heads, passes, rows, tail).add_(bias)
    return torch.softmax(torch.cat([over_prefix, over_tail], -1), -1)


def _products(q: Tensor, keys: Sequence[Tensor]) -> Tensor:
    """(layers, heads, r, n) products of `q` (layers, heads, r, d) with each layer's keys (kv_heads, n, d)."""
    layers, heads, rows, size = q.shape
    kv, count, _ = keys[0].shape
    products = q.new_empty(layers, heads, rows, count)
    # neighbouring heads share their keys: one product for all their rows
    shape = layers, kv, heads // kv * rows
    for grouped, own, out in zip(q.reshape(*shape, size), keys, products.view(*shape, count), strict=True):
        torch.bmm(grouped, own.float().transpose(1, 2), out=out)
    return products


def _scaled(q: Tensor, scales: Sequence[float]) -> Tensor:
    """`q` (layers, …) times each layer's scale, in place."""
    if all(scale == scales[0] for scale in scales):
        return q.mul_(scales[0])
    return q.mul_(torch.tensor(scales, device=q.device).view(-1, *(1,) * (q.ndim - 1)))
