"""The decoder's forward pass written out: attention as a matrix, one softmax over the keys that a row may see."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tracekit.model.backbone import Backbone


class Eager(NamedTuple):
    """`hidden` (n, D) after the final norm, `residual` (n, D) before it, `attention` (layers, heads, n, n)."""

    hidden: Tensor
    residual: Tensor
    attention: Tensor


def rotated(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """RoPE: entries i and i + d/2 of `x` (heads, n, d) turn together by position · theta^(-2i/d)."""
    half = x.shape[-1] // 2
    frequency = 1.0 / theta ** (torch.arange(half).float() * 2 / x.shape[-1])
    angle = positions.float()[:, None] * frequency
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=-1)


def probabilities(query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
    """(heads, n, m) softmax of the scaled products where `visible` (n, m); `key` may have fewer heads."""
    key = key.repeat_interleave(query.shape[0] // key.shape[0], 0)
    logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return logits.masked_fill(~visible, -torch.inf).softmax(-1)


@torch.inference_mode()
def eager_forward(
    backbone: Backbone, rows: Tensor, positions: Tensor, keys: Tensor | None = None, *, behind: int = -1, first: int = 0
) -> Eager:
    """`rows` (n, D) at `positions` (n,) through the decoder; `keys` (n,) bool: rows that others may look at.

    `behind`: the last layer that still sees all rows. `first`: the rows before this one see all rows in every layer.
    """
    count, size = len(rows), backbone.head_dim
    causal = torch.ones(count, count, dtype=torch.bool).tril()
    cut = causal.clone()
    if keys is not None:
        cut &= keys | torch.eye(count, dtype=torch.bool)  # a row always sees itself, so that none sees nothing
        cut[:first] = causal[:first]
    maps = []
    for index, layer in enumerate(backbone.layers):
        visible = causal if index <= behind else cut
        x, own = layer.input_layernorm(rows), layer.self_attn
        query, key, value = (
            project(x).view(count, -1, size).transpose(0, 1) for project in (own.q_proj, own.k_proj, own.v_proj)
        )
        attention = probabilities(
            rotated(query, positions, backbone.rope_theta), rotated(key, positions, backbone.rope_theta), visible
        )
        maps.append(attention)
        value = value.repeat_interleave(query.shape[0] // value.shape[0], 0)
        rows = rows + own.o_proj((attention @ value).transpose(0, 1).reshape(count, -1))
        x = layer.post_attention_layernorm(rows)
        rows = rows + layer.mlp.down_proj(functional.silu(layer.mlp.gate_proj(x)) * layer.mlp.up_proj(x))
    return Eager(backbone.norm(rows), rows, torch.stack(maps))
