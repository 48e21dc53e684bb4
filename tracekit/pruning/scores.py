"""From observables to the few numbers per patch that a decision rule needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from tracekit.digest import digest_json
from tracekit.errors import ConfigError, TraceError
from tracekit.pruning.base import Shape
from tracekit.pruning.observables import Observables
from tracekit.pruning.saliency import orthogonal

__all__ = ["Reduction", "Scores", "reduce"]

Feature = Literal["prenorm", "postnorm", "logits"]
Correspondence = Literal["projection", "index", "nearest"]
Components = Literal["layer_head", "head", "query", "layer"]
Group = Literal["text", "state", "action"]
Passes = Literal["first", "mean", "all"]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Reduction:
    """How observables become scores; the numbers are the rows of docs/algorithm1.md.

    `feature` (1): final-layer feature whose L1 norm is f. `correspondence` (2): which point tokens belong to a patch:
    those that project into it, the one of the same index, or by projection with the unprojected ones given to the patch
    whose centre ray passes nearest. `components` (4): entries of α: one per layer, head and query group; or one per
    head, query group or layer, the mean over the two other axes. `groups`, `layers`, `passes` (5): query groups, layers
    (the last ⌈L/4⌉, all, or indices), and denoise passes of α; the later passes are recorded as head means of the
    action rows, so `mean` (of the passes' α) and `all` (their α side by side) need `groups = ["action"]` and components
    `query` or `layer`.
    """

    feature: Feature = "prenorm"
    correspondence: Correspondence = "projection"
    components: Components = "layer_head"
    groups: tuple[Group, ...] = ("text", "action")
    layers: Literal["last_quarter", "all"] | tuple[int, ...] = "last_quarter"
    passes: Passes = "first"

    def __post_init__(self) -> None:
        for name, choices in (
            ("feature", Feature),
            ("correspondence", Correspondence),
            ("components", Components),
            ("passes", Passes),
        ):
            if getattr(self, name) not in get_args(choices):
                raise ConfigError(
                    f"pruner.reduction.{name} = {getattr(self, name)!r}: choose one of {', '.join(get_args(choices))}"
                )
        known = get_args(Group)
        if not self.groups or len(set(self.groups)) < len(self.groups) or not set(self.groups) <= set(known):
            raise ConfigError(
                f"pruner.reduction.groups = {list(self.groups)}: give at least one of {', '.join(known)}, each once"
            )
        if isinstance(self.layers, str):
            if self.layers not in {"last_quarter", "all"}:
                raise ConfigError(f"pruner.reduction.layers = {self.layers!r}: last_quarter, all, or a list of indices")
        elif not self.layers or len(set(self.layers)) < len(self.layers) or min(self.layers) < 0:
            raise ConfigError(
                f"pruner.reduction.layers = {list(self.layers)}: give at least one index from 0, each once"
            )
        if self.passes != "first" and (self.groups != ("action",) or self.components not in {"query", "layer"}):
            raise ConfigError(
                f"pruner.reduction.passes = {self.passes!r}: later passes are recorded as head means of the action "
                'rows; set groups = ["action"] and components = "layer" or "query"'
            )

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical form: the name under which scores are stored."""
        return digest_json(asdict(self))


@dataclass(frozen=True, slots=True)
class Scores:
    """What Algorithm 1 reads, per patch: float32 (N_2D,), or (steps, N_2D) for a whole episode; L1 norms, hence ≥ 0.

    `norm_2d`, `norm_3d`: ‖f_2D‖₁ and the mean ‖f_3D‖₁ of the patch's points. `attention_2d`, `attention_3d`: ‖α_2D‖₁
    and ‖α_3D‖₁, α_3D being the mean α vector of its points. `ortho_3d`: L1 norm of the part of α_3D orthogonal to α_2D
    (Eq. 4). `points`: int32 number of point tokens in the patch; without any, the 3D numbers are 0.
    """

    norm_2d: npt.NDArray[np.float32]
    norm_3d: npt.NDArray[np.float32]
    attention_2d: npt.NDArray[np.float32]
    attention_3d: npt.NDArray[np.float32]
    ortho_3d: npt.NDArray[np.float32]
    points: npt.NDArray[np.int32]

    def __post_init__(self) -> None:
        for field in fields(self):
            values = getattr(self, field.name)
            dtype = np.int32 if field.name == "points" else np.float32
            if values.dtype != dtype or values.shape != self.norm_2d.shape or values.ndim not in {1, 2}:
                raise TraceError(
                    f"scores.{field.name} is {values.dtype}{values.shape}: it must be {np.dtype(dtype)} of the shape "
                    f"of norm_2d, {self.norm_2d.shape}, (N_2D,) or (steps, N_2D)"
                )
            if not np.isfinite(values).all() or (values.size and values.min() < 0):
                where = np.argwhere(~np.isfinite(values) | (values < 0))[0]
                raise TraceError(
                    f"scores.{field.name}[{', '.join(map(str, where))}] is {values[tuple(where)]}: L1 norms and counts "
                    "are finite and not negative; the forward pass overflowed or the store is damaged"
                )

    def __len__(self) -> int:
        """Number of steps of a whole episode's scores."""
        return len(self.norm_2d)

    def step(self, index: int) -> Scores:
        """The scores of one step out of a whole episode's."""
        return Scores(*(getattr(self, field.name)[index] for field in fields(self)))

    @classmethod
    def stack(cls, steps: Sequence[Scores]) -> Scores:
        """Single steps' scores as those of a whole episode."""
        return cls(*(np.stack([getattr(scores, field.name) for scores in steps]) for field in fields(cls)))


def reduce(observables: Observables, reduction: Reduction, shape: Shape) -> Scores:
    """The scores of one step. Arithmetic is float64, what is returned is float32, and decisions start from that.

    Raises TraceError if the observables lack a part that the reduction needs or hold NaN or Inf, and ConfigError if the
    reduction names layers or query groups that the policy does not have.
    """
    norms = _norms(observables, reduction)
    alphas, patches = _alphas(observables, reduction, shape)
    alpha_2d = _join([alpha[:, : shape.n_2d] for alpha in alphas], reduction)
    if shape.n_3d:
        alpha_3d = _join_points(
            [_mean_per_patch(a[:, shape.n_2d :], p, shape.n_2d) for a, p in zip(alphas, patches, strict=True)],
            [_counts(p, shape.n_2d) for p in patches],
            reduction,
        )
        norm_3d = _mean_per_patch(norms[None, shape.n_2d :], patches[0], shape.n_2d)[0]
        points = _counts(patches[0], shape.n_2d)
    else:
        alpha_3d, norm_3d, points = np.zeros_like(alpha_2d), np.zeros(shape.n_2d), np.zeros(shape.n_2d, np.int32)
    with np.errstate(over="ignore"):  # Scores refuses by name what float32 cannot hold
        return Scores(
            norm_2d=norms[: shape.n_2d].astype(np.float32),
            norm_3d=norm_3d.astype(np.float32),
            attention_2d=np.abs(alpha_2d).sum(0).astype(np.float32),
            attention_3d=np.abs(alpha_3d).sum(0).astype(np.float32),
            ortho_3d=np.abs(orthogonal(alpha_3d, alpha_2d)).sum(0).astype(np.float32),
            points=points,
        )


def _norms(observables: Observables, reduction: Reduction) -> Doubles:
    if reduction.feature not in observables.norms:
        there = ", ".join(sorted(observables.norms)) or "none"
        raise TraceError(
            f"norms of feature {reduction.feature!r} were not recorded (there: {there}); record with them, or change "
            "pruner.reduction.feature"
        )
    return _finite(observables.norms[reduction.feature], f"norms[{reduction.feature!r}]", observables)


def _alphas(
    observables: Observables, reduction: Reduction, shape: Shape
) -> tuple[list[Doubles], list[npt.NDArray[np.int32]]]:
    """α of every visual token, (components, N) per denoise pass that is used, and the point -> patch map of each."""
    missing = [group for group in reduction.groups if group not in observables.groups]
    if missing:
        raise ConfigError(
            f"pruner.reduction.groups: the policy has no query group {missing[0]!r}; "
            f"it has: {', '.join(observables.groups)}"
        )
    layers = _layers(reduction, observables.attention.shape[0])
    groups = [observables.groups.index(group) for group in reduction.groups]
    first = _finite(observables.attention[layers][:, :, groups], "attention", observables)
    tokens = first.shape[-1]
    if tokens != shape.n_2d + shape.n_3d:
        raise TraceError(f"attention has {tokens} visual tokens, the policy's layout {shape.n_2d + shape.n_3d}")
    axes = {"layer_head": (), "head": (0, 2), "query": (0, 1), "layer": (1, 2)}[reduction.components]
    alphas = [(first.mean(axis=axes) if axes else first).reshape(-1, tokens)]
    patches = [_patches(observables, reduction, shape)]
    if reduction.passes != "first":
        if observables.attention_action is None:
            raise TraceError(
                f"pruner.reduction.passes = {reduction.passes!r}: attention of the later passes was not recorded; "
                'record with it, or use passes = "first"'
            )
        later = _finite(observables.attention_action[:, layers], "attention_action", observables)
        alphas += [one.mean(axis=0, keepdims=True) if reduction.components == "query" else one for one in later]
        patches += [_patches(observables, reduction, shape, index) for index in range(len(later))]
    return alphas, patches


def _layers(reduction: Reduction, count: int) -> list[int]:
    if reduction.layers == "all":
        return list(range(count))
    if reduction.layers == "last_quarter":
        return list(range(count - -(-count // 4), count))
    beyond = [layer for layer in reduction.layers if int(layer) >= count]
    if beyond:
        raise ConfigError(f"pruner.reduction.layers: the policy has layers 0 to {count - 1}, not {beyond[0]}")
    return [int(layer) for layer in reduction.layers]


def _patches(
    observables: Observables, reduction: Reduction, shape: Shape, later: int | None = None
) -> npt.NDArray[np.int32]:
    """(N_3D,) patch of every point token under the reduction's correspondence, -1 for none."""
    if not shape.n_3d:
        return np.zeros(0, np.int32)
    if reduction.correspondence == "index":
        index = np.arange(shape.n_3d, dtype=np.int32)
        return np.where(index < shape.n_2d, index, -1).astype(np.int32)
    patch = observables.patch
    if reduction.correspondence == "nearest":
        if later is not None:
            raise TraceError('the nearest patch is known for pass 0 only; use pruner.reduction.passes = "first"')
        patch = observables.nearest_patch
    elif later is not None:
        patch = None if observables.patch_later is None else observables.patch_later[later]
    if patch is None:
        raise TraceError(
            f"the observables lack the point tokens' patches that correspondence = {reduction.correspondence!r} needs; "
            'record with a camera, or use correspondence = "index" with reuse.fps = "pinned"'
        )
    if patch.shape != (shape.n_3d,) or patch.min() < -1 or patch.max() >= shape.n_2d:
        raise TraceError(f"the points' patches must be ({shape.n_3d},) integers from -1 to {shape.n_2d - 1}")
    return patch


def _join(alphas: list[Doubles], reduction: Reduction) -> Doubles:
    if reduction.passes == "all":
        return np.concatenate(alphas)
    return np.asarray(np.stack(alphas).mean(0), np.float64)


def _join_points(alphas: list[Doubles], counts: list[npt.NDArray[np.int32]], reduction: Reduction) -> Doubles:
    """α_3D per patch over the passes; a pass that has no point in the patch is left out of its mean."""
    if reduction.passes == "all":
        return np.concatenate(alphas)
    present = np.maximum(np.sum([count > 0 for count in counts], axis=0), 1)
    return np.asarray(np.sum(alphas, axis=0) / present, np.float64)


def _counts(patch: npt.NDArray[np.int32], patches: int) -> npt.NDArray[np.int32]:
    return np.bincount(patch[patch >= 0], minlength=patches).astype(np.int32)


def _mean_per_patch(values: Doubles, patch: npt.NDArray[np.int32], patches: int) -> Doubles:
    """(rows, patches) mean of `values` (rows, points) over each patch's points, in index order; 0 without points."""
    out = np.zeros((values.shape[0], patches))
    order = np.argsort(patch, kind="stable")
    order = order[patch[order] >= 0]
    if order.size:
        filled, starts, counts = np.unique(patch[order], return_index=True, return_counts=True)
        out[:, filled] = np.add.reduceat(values[:, order], starts, axis=1) / counts
    return out


def _finite(values: npt.NDArray[np.floating[Any]], name: str, observables: Observables) -> Doubles:
    """`values` (…, N) in float64, zeros at tokens that were not fed; raises TraceError at the first NaN or Inf."""
    out = values.astype(np.float64)
    if observables.kept is not None:
        out = np.where(observables.kept, out, 0.0)
    if not np.isfinite(out).all():
        where = np.argwhere(~np.isfinite(out))
        raise TraceError(
            f"observables.{name} holds {len(where)} NaN or infinite values (first at visual token {where[0][-1]}): "
            "the forward pass overflowed; run it in float32, or leave this step out"
        )
    return out
