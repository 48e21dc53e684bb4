"""The LLaMA decoder: plain causal attention with RoPE at given positions, over one sequence of rows, with a KV cache.

Names and structure are those of Hugging Face's LlamaForCausalLM, so its state dicts load as they are and a capture
finds `layers[i].self_attn.{q,k,v,o}_proj` and `norm` by structure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tracekit.errors import PolicyError
from tracekit.model.layers import Embedding, Linear, RMSNorm

__all__ = ["Backbone", "CausalLM", "DecoderLayer", "KVCache", "LayerCache", "rotate"]


class LayerCache:
    """Rotated keys and values of one layer: buffers of shape (kv_heads, capacity, head_dim), filled from the front."""

    def __init__(self, kv_heads: int, capacity: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
        self._keys = torch.empty(kv_heads, capacity, head_dim, dtype=dtype, device=device)
        self._values = torch.empty_like(self._keys)
        self.length = 0

    @property
    def keys(self) -> Tensor:
        """(kv_heads, length, head_dim) view of the held keys."""
        return self._keys[:, : self.length]

    @property
    def values(self) -> Tensor:
        """(kv_heads, length, head_dim) view of the held values."""
        return self._values[:, : self.length]

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add (kv_heads, n, head_dim) rows and return views of all held keys and values."""
        stop = self.length + keys.shape[1]
        if stop > self._keys.shape[1]:
            raise PolicyError(
                f"KV cache: {stop} rows do not fit a capacity of {self._keys.shape[1]}; ask new_cache for room for the "
                "whole sequence"
            )
        self._keys[:, self.length : stop] = keys
        self._values[:, self.length : stop] = values
        self.length = stop
        return self.keys, self.values

    def select(self, rows: Tensor) -> None:
        """Keep only `rows` ((n,) int64, ascending indices of held rows)."""
        count = len(rows)
        self._keys[:, :count] = self.keys.index_select(1, rows)
        self._values[:, :count] = self.values.index_select(1, rows)
        self.length = count


class KVCache:
    """One `LayerCache` per layer, preallocated; satisfies `tracekit.policy.Cache`. For inference only."""

    def __init__(
        self, layers: int, kv_heads: int, capacity: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.layers = tuple(LayerCache(kv_heads, capacity, head_dim, dtype, device) for _ in range(layers))

    @property
    def length(self) -> int:
        """Rows held by the first layer."""
        return self.layers[0].length

    def forget(self, count: int) -> None:
        """Forget the last `count` rows of every layer."""
        shortest = min(layer.length for layer in self.layers)
        if not 0 <= count <= shortest:
            raise PolicyError(f"KV cache: cannot forget {count} rows, it holds {shortest}; only forget held rows")
        for layer in self.layers:
            layer.length -= count

    def select(self, rows: Tensor) -> None:
        """Keep only `rows` ((n,) int64, ascending indices of held rows)."""
        for layer in self.layers:
            layer.select(rows)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE in the half-rotation convention: x (..., n, head_dim) with cos, sin (n, head_dim).

    x·cos + [-second half, first half]·sin, with the sign on the sine: there it costs nothing.
    """
    half = x.shape[-1] // 2
    signed = torch.cat([-sin[..., :half], sin[..., half:]], -1)
    return (x * cos).add_(x.roll(half, -1).mul_(signed))


class Attention(nn.Module):
    """Causal attention through the fused kernel, with grouped queries where `kv_heads` is below `heads`.

    `observers`: called with the projected queries and keys, (..., n, heads·head_dim), not rotated, and the keyword
    arguments of the call, once the cache holds the keys. A capture enters itself here: a call costs a third of hooks on
    two projections and the module, and on a small policy hooks are what capturing costs.
    """

    def __init__(self, hidden: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.kv_heads = kv_heads
        self.head_dim = hidden // heads
        self.q_proj = Linear(hidden, hidden, bias=False)
        self.k_proj = Linear(hidden, kv_heads * self.head_dim, bias=False)
        self.v_proj = Linear(hidden, kv_heads * self.head_dim, bias=False)
        self.o_proj = Linear(hidden, hidden, bias=False)
        self.observers: list[Callable[[Tensor, Tensor, Mapping[str, Any]], None]] = []

    def forward(
        self,
        x: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        cache: LayerCache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """(..., n, hidden) -> (..., n, hidden); see `Backbone.forward`."""
        cos, sin = position_embeddings
        x = x.to(self.q_proj.weight.dtype)  # once for the three of them
        projected_query, projected_key = self.q_proj(x), self.k_proj(x)
        query = rotate(self._heads(projected_query), cos, sin)
        key = rotate(self._heads(projected_key), cos, sin)
        value = self._heads(self.v_proj(x))
        projected: Tensor = self.o_proj(self._mix(query, key, value, cache, mask).reshape(x.shape))
        for observe in self.observers:
            given = {"position_embeddings": position_embeddings, "cache": cache, "mask": mask}
            observe(projected_query, projected_key, given)
        return projected

    def together(
        self,
        x: Tensor,
        sizes: Sequence[int],
        position_embeddings: tuple[Tensor, Tensor],
        caches: Sequence[LayerCache | None],
    ) -> Tensor:
        """(Σn, hidden) -> (Σn, hidden): sequences of `sizes` rows over caches of their own; products are shared."""
        cos, sin = position_embeddings
        lengths = list(sizes)
        query = torch.split(rotate(self._heads(self.q_proj(x)), cos, sin), lengths, -2)
        key = torch.split(rotate(self._heads(self.k_proj(x)), cos, sin), lengths, -2)
        value = torch.split(self._heads(self.v_proj(x)), lengths, -2)
        mixed = [
            self._mix(q, k, v, cache, None).reshape(size, -1)
            for q, k, v, cache, size in zip(query, key, value, caches, sizes, strict=True)
        ]
        projected: Tensor = self.o_proj(torch.cat(mixed))
        return projected

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, cache: LayerCache | None, mask: Tensor | None) -> Tensor:
        """(..., heads, n, head_dim) each -> (B, n, heads, head_dim): what the rows take from all keys they may see."""
        held = 0
        if cache is not None:
            held = cache.length
            key, value = cache.extend(key, value)
        grouped = self.kv_heads != self.heads
        if grouped and torch.is_grad_enabled():  # without gradients the fused kernel shares keys by itself, same bits
            grouped = False
            key = key.repeat_interleave(self.heads // self.kv_heads, -3)
            value = value.repeat_interleave(self.heads // self.kv_heads, -3)
        rows = query.shape[-2]
        if mask is None and held and rows > 1:
            mask = _causal_over(held, rows, query.device)
        causal = mask is None and held == 0
        mixed = functional.scaled_dot_product_attention(
            _batched(query), _batched(key), _batched(value), attn_mask=mask, is_causal=causal, enable_gqa=grouped
        )
        return mixed.transpose(1, 2)

    def _heads(self, x: Tensor) -> Tensor:
        """(..., n, heads·head_dim) -> (..., heads, n, head_dim)."""
        return x.view(*x.shape[:-1], -1, self.head_dim).transpose(-3, -2)


@lru_cache(maxsize=16)
def _causal_over(held: int, rows: int, device: torch.device) -> Tensor:
    """(rows, held + rows) bool: what rows after `held` cached ones see; kept, as every pass asks for the same."""
    with torch.inference_mode(False):
        return torch.ones(rows, held + rows, dtype=torch.bool, device=device).tril(held)


def _batched(x: Tensor) -> Tensor:
    """(..., heads, n, head_dim) -> (B, heads, n, head_dim).

    The fused kernels take four dimensions only; given three, torch falls back to the unfused product.
    """
    return x.reshape(-1, *x.shape[-3:])


class GatedMlp(nn.Module):
    """down(SiLU(gate(x)) · up(x))."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden, intermediate, bias=False)
        self.up_proj = Linear(hidden, intermediate, bias=False)
        self.down_proj = Linear(intermediate, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., hidden) -> (..., hidden)."""
        x = x.to(self.gate_proj.weight.dtype)
        projected: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return projected


class DecoderLayer(nn.Module):
    """x <- x + attention(norm(x)); x <- x + mlp(norm(x))."""

    def __init__(self, hidden: int, heads: int, kv_heads: int, intermediate: int, eps: float) -> None:
        super().__init__()
        self.self_attn = Attention(hidden, heads, kv_heads)
        self.mlp = GatedMlp(hidden, intermediate)
        self.input_layernorm = RMSNorm(hidden, eps)
        self.post_attention_layernorm = RMSNorm(hidden, eps)

    def forward(
        self, x: Tensor, position_embeddings: tuple[Tensor, Tensor], cache: LayerCache | None, mask: Tensor | None
    ) -> Tensor:
        """(..., n, hidden) -> (..., n, hidden)."""
        x = x + self.self_attn(self.input_layernorm(x), position_embeddings=position_embeddings, cache=cache, mask=mask)
        after: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return after


class Backbone(nn.Module):
    """The decoder without its vocabulary head: `embed_tokens`, `layers`, `norm`."""

    inverse_frequencies: Tensor

    def __init__(
        self,
        *,
        vocabulary: int,
        hidden: int,
        layers: int,
        heads: int,
        kv_heads: int,
        intermediate: int,
        eps: float,
        rope_theta: float,
    ) -> None:
        super().__init__()
        self.head_dim = hidden // heads
        self.rope_theta = rope_theta
        self.embed_tokens = Embedding(vocabulary, hidden)
        self.layers = nn.ModuleList(DecoderLayer(hidden, heads, kv_heads, intermediate, eps) for _ in range(layers))
        self.norm = RMSNorm(hidden, eps)

    def rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine, each (n, head_dim), at `positions` (n,) int64, in the dtype of the projections."""
        # Computed from theta at every call: it is cheap, and a buffer would be left behind when weights are assigned.
        exponents = (
            torch.arange(0, self.head_dim, 2, dtype=torch.int64, device=positions.device).float() / self.head_dim
        )
        angles = positions.float()[..., None] * (1.0 / self.rope_theta**exponents)
        cos, sin = angles.cos().to(self.dtype), angles.sin().to(self.dtype)
        return torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the projections, and so of queries, keys and values."""
        weight: Tensor = self.layers[0].self_attn.k_proj.weight  # type: ignore[union-attr, assignment]
        return weight.dtype

    def forward(
        self,
        rows: Tensor,
        positions: Tensor,
        cache: KVCache | None = None,
        mask: Tensor | None = None,
        blocks: slice | None = None,
    ) -> Tensor:
        """Final hidden states (..., n, hidden) of `rows` (..., n, hidden) at RoPE `positions` (n,) int64.

        Row order is causal order. With a `cache` (no leading dimensions then) the rows follow those it holds and are
        added. `mask`: (n, keys) bool, True where a row may look, instead of plain causality. `blocks`: run only these
        layers; `rows` are then the states before the first of them, and the final norm follows only the last layer.
        """
        position_embeddings = self.rope(positions)
        chosen = range(len(self.layers))[blocks or slice(None)]
        for i in chosen:
            rows = self.layers[i](rows, position_embeddings, None if cache is None else cache.layers[i], mask)
        if chosen.stop < len(self.layers):
            return rows
        hidden: Tensor = self.norm(rows)
        return hidden

    def together(
        self, rows: Sequence[Tensor], positions: Sequence[Tensor], caches: Sequence[KVCache | None]
    ) -> list[Tensor]:
        """`forward` for several sequences at once, each with a cache of its own or none: the products are shared.

        Equal to one at a time up to rounding, which depends on the number of rows in a product.
        """
        sizes = [len(one) for one in rows]
        states, position_embeddings = torch.cat(list(rows)), self.rope(torch.cat(list(positions)))
        for i in range(len(self.layers)):
            layer: DecoderLayer = self.layers[i]  # type: ignore[assignment]  # the list holds nothing else
            held = [None if cache is None else cache.layers[i] for cache in caches]
            states = states + layer.self_attn.together(layer.input_layernorm(states), sizes, position_embeddings, held)
            states = states + layer.mlp(layer.post_attention_layernorm(states))
        return list(torch.split(self.norm(states), sizes))


class CausalLM(nn.Module):
    """`model` (the backbone) and `lm_head`, named as in a LlamaForCausalLM. The head feeds no action."""

    def __init__(self, model: Backbone, vocabulary: int, hidden: int) -> None:
        super().__init__()
        self.model = model
        self.lm_head = Linear(hidden, vocabulary, bias=False)
