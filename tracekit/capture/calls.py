"""Reading one call of a `self_attn`, whoever wrote it: its rotary embedding, its keys, and what each row may see.

Understood are the toolkit's own decoder and Hugging Face's, from the signature of transformers 4.40 (`position_ids`,
with the rotary embedding inside the attention) to the present one (`position_embeddings`), with or without a cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tracekit.capture.structure import attribute
from tracekit.errors import PolicyError

__all__ = [
    "apply_rotary",
    "given_mask",
    "held_keys",
    "own_keys",
    "rotary_of",
    "scale_of",
    "signed",
    "single",
    "turn",
    "visible",
]


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate `x` (..., n, d) by `cos`, `sin` (n, d) in LLaMA's half-split convention; float32."""
    return turn(x.float(), cos.float(), signed(sin))


def signed(sin: Tensor) -> Tensor:
    """`sin` (n, d) with its first half negated, float32: what `turn` takes."""
    first, second = sin.float().chunk(2, -1)
    return torch.cat([-first, second], -1)


def turn(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """`apply_rotary` for prepared tables that broadcast against `x` (..., d): few calls, which is what it costs."""
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), signed_sin)


def single(rows: Tensor, what: str) -> Tensor:
    """`rows` without a leading batch dimension of 1: (n, D). Raises PolicyError for a batch of several samples."""
    if rows.ndim == 2:
        return rows
    if rows.ndim == 3 and rows.shape[0] == 1:
        return rows[0]
    raise PolicyError(
        f"{what} has shape {tuple(rows.shape)}; one sample at a time can be observed, as (1, rows, width)"
    )


def rotary_of(module: nn.Module, kwargs: Mapping[str, Any], sample: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine, each (n, d), that this call of `module` rotates its n rows by; `sample` gives dtype and device.

    Raises PolicyError where the call says neither `position_embeddings` nor `position_ids`, or rotates a part only.
    """
    pair = kwargs.get("position_embeddings")
    if pair is None and kwargs.get("position_ids") is not None:
        rotary = getattr(module, "rotary_emb", None)
        pair = None if rotary is None else rotary(sample, kwargs["position_ids"])
    if pair is None:
        raise PolicyError(
            f"attention {type(module).__name__} was called without position_embeddings or position_ids; rows can only "
            "be rebuilt where rotary positions are passed by keyword"
        )
    cos, sin = (single(part, "a rotary table") for part in pair)
    width = getattr(module, "head_dim", cos.shape[-1])
    if cos.shape[-1] != width or len(cos) != len(sample):
        raise PolicyError(
            f"attention {type(module).__name__} rotates {tuple(cos.shape)} of {len(sample)} rows with heads {width} "
            "wide; only full rotary embedding of all fed rows can be rebuilt"
        )
    return cos, sin


def scale_of(module: nn.Module, width: int) -> float:
    """Factor of the logits: the module's own `scaling`, else width^-1/2."""
    found = attribute(module, "scaling")
    return width**-0.5 if found is None else float(found)


def own_keys(key: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """(kv_heads, n, d) float32 rotated keys of a call without earlier rows; `key`: (n, kv_heads·d), not rotated."""
    return apply_rotary(key.view(len(key), -1, rotary[0].shape[-1]).transpose(0, 1), *rotary)


def held_keys(module: nn.Module, kwargs: Mapping[str, Any], count: int) -> Tensor:
    """(kv_heads, count, d) rotated keys of the cache that the call was given, its own rows among them, in place.

    Raises PolicyError where the cache holds another number of rows, or none was given.
    """
    own = kwargs.get("cache")
    found: Tensor | None = _cached(module, kwargs) if own is None else own.keys
    if found is None or found.shape[-2] != count:
        there = "no cache" if found is None else f"{found.shape[-2]} keys"
        raise PolicyError(
            f"attention {type(module).__name__}: {count} keys were announced but the call has {there}; announce the "
            "rows that the cache holds"
        )
    return found


def _cached(module: nn.Module, kwargs: Mapping[str, Any]) -> Tensor | None:
    """(kv_heads, n, d) keys of this layer in a Hugging Face cache, after the call has added its own."""
    cache = kwargs.get("past_key_values", kwargs.get("past_key_value"))
    layer = getattr(module, "layer_idx", None)
    if cache is None or layer is None:
        return None
    layers = getattr(cache, "layers", None)
    keys: Tensor = layers[layer].keys if layers is not None else cache.key_cache[layer]
    if keys.shape[0] != 1:
        raise PolicyError(f"the cache holds {keys.shape[0]} samples; one sample at a time can be observed")
    return keys[0]


def given_mask(kwargs: Mapping[str, Any]) -> Any:
    """The mask that a call was given: Hugging Face's `attention_mask`, or the toolkit's `mask`, (rows, keys) bool."""
    mask = kwargs.get("attention_mask")
    return kwargs.get("mask") if mask is None else mask


def visible(module: nn.Module, kwargs: Mapping[str, Any], rows: Tensor, held: int, count: int) -> Tensor:
    """(1 or heads, r, count) float32 to add to the logits of query `rows` ((r,) indices into the fed rows).

    A mask that the call was given, else plain causality: 0 where a row may look, -inf where not.
    """
    if kwargs.get("output_attentions"):
        raise PolicyError(
            f"attention {type(module).__name__} was called with output_attentions=True, which some versions run "
            "without the causal mask; switch it off while observing"
        )
    mask, own = given_mask(kwargs), kwargs.get("mask")
    if isinstance(own, Tensor) and own is mask:
        hidden = ~own[rows]
        return torch.zeros(hidden.shape, device=own.device).masked_fill_(hidden, float("-inf"))[None]
    if isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[0] == 1:
        given = mask[0, :, rows, :count]
        if given.dtype != torch.bool:
            return given.float()
        return torch.zeros(given.shape, device=given.device).masked_fill_(~given, float("-inf"))
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2 and bool(mask.all())):
        raise PolicyError(
            f"attention {type(module).__name__} was given a {type(mask).__name__} as its mask, which cannot be read; "
            'load the model with attn_implementation="sdpa"'
        )
    future = torch.arange(count, device=rows.device) > (held + rows)[:, None]
    return torch.zeros(future.shape, device=rows.device).masked_fill_(future, float("-inf"))[None]
