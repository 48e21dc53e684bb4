"""Ranking tokens by one score each, the same way in every baseline."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit.errors import ConfigError, TraceError
from tracekit.pruning.base import Decision, Shape
from tracekit.pruning.observables import Observables
from tracekit.pruning.options import kept_count

__all__ = ["group_mean", "keep_top", "layer_of", "part", "top"]

Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.floating[Any]]


def top(scores: Numbers, count: int) -> Mask:
    """(n,) True for the `count` highest of `scores` (n,), ties by lower index."""
    keep = np.zeros(scores.size, np.bool_)
    keep[np.argsort(-scores.astype(np.float64), kind="stable")[:count]] = True
    return keep


def keep_top(scores: Numbers, rate: float, shape: Shape) -> Decision:
    """The highest `scores` (N_2D + N_3D,) of each modality, ranked apart: causal attention favours early tokens."""
    keep_2d = top(scores[: shape.n_2d], kept_count(shape.n_2d, rate))
    if not shape.n_3d:
        return Decision(keep_2d, None)
    return Decision(keep_2d, None, keep_3d_tokens=top(scores[shape.n_2d :], kept_count(shape.n_3d, rate)))


def part(seen: Observables, name: str, kind: str) -> npt.NDArray[Any]:
    """The observables called `name`; raises TraceError naming `kind` if they were not taken or are not numbers."""
    values = getattr(seen, name)
    if values is None:
        raise TraceError(f"pruner {kind!r} needs observables {name!r}, which this trace lacks; record it with them")
    out = np.asarray(values)
    if not np.isfinite(out).all():
        raise TraceError(
            f"observables.{name} holds {np.count_nonzero(~np.isfinite(out))} NaN or infinite values, which pruner "
            f"{kind!r} cannot rank; run the forward pass in float32, or leave this step out"
        )
    return out


def group_mean(seen: Observables, layer: int, group: str, kind: str) -> npt.NDArray[np.float64]:
    """(N,) attention of query group `group` in `layer`, the mean over heads, added head after head in float64."""
    if group not in seen.groups:
        raise ConfigError(f"pruner {kind!r}: the policy has no query group {group!r}; it has: {', '.join(seen.groups)}")
    heads = part(seen, "attention", kind)[layer, :, seen.groups.index(group)].astype(np.float64)
    return np.asarray(np.add.accumulate(heads, axis=0)[-1] / len(heads), np.float64)


def layer_of(layers: int, wanted: int, name: str) -> int:
    """`wanted` if the policy has that layer; raises ConfigError naming the option `name`."""
    if not 0 <= wanted < layers:
        raise ConfigError(f"pruner.{name}: needs the attention of layer {wanted}, but the policy has {layers} layers")
    return wanted
