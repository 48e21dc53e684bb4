"""The token part of SP-VLA (arXiv 2506.12723): attended image patches and edges, attended points.

The rule for 3D tokens in the published comparison is not published. Here as many points as image patches are taken by
attention, so that the total meets the rate until edges alone exceed it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tracekit.errors import TraceError
from tracekit.layout import PATCHES_PER_VIEW
from tracekit.pruning.base import Decision, DecisionKey, Pruner, Shape, StageTimer, untimed
from tracekit.pruning.canny import edge_patches
from tracekit.pruning.observables import Observables
from tracekit.pruning.options import check_choices, check_range, check_unread
from tracekit.pruning.ranking import part, top

__all__ = ["SP_VLA", "SpVlaConfig"]

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class SpVlaConfig:
    """How many tokens, and what counts as an edge.

    `budget`: `fixed_r` keeps the largest a with |edges ∪ top-a 2D| + a ≤ round((N_2D + N_3D)·(1 - rate)), and the top a
    points; `velocity` keeps, per modality, the tokens in order of attention until their share of it reaches
    T = 1 - (min(v, 1) - v_threshold)·z_min/(1 - v_threshold), everything where v ≤ v_threshold; v is the previous
    translation over `full_speed_mm`. `canny_low`, `canny_high`: hysteresis of the edges, on grey values 0 … 255. The
    first step has no velocity and is not pruned. Attention is that of the last layer, over all heads and queries.
    """

    budget: Literal["fixed_r", "velocity"] = "fixed_r"
    rate: float = 0.5
    v_threshold: float = 0.5
    z_min: float = 0.9
    full_speed_mm: float = 100.0
    canny_low: int = 100
    canny_high: int = 200

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, "rate", 0, 1, "the share of tokens to prune", open_end=True)
        check_range(self, "v_threshold", 0, 1, "a share of the full speed", open_end=True)
        check_range(self, "z_min", 0, 1, "how far the attention share falls at full speed")
        check_range(self, "full_speed_mm", 1e-6, 1e6, "the translation per step that counts as speed 1, in millimetres")
        check_range(self, "canny_low", 0, self.canny_high, "the weak threshold, at most canny_high")
        check_range(self, "canny_high", 0, 2040, "the strong threshold on |gx| + |gy|")
        if self.budget == "velocity":
            check_unread(self, ("rate",), "budget = 'fixed_r'")
        else:
            check_unread(self, ("v_threshold", "z_min", "full_speed_mm"), "budget = 'velocity'")


def _decide(
    seen: Observables | None,
    state: None,
    config: SpVlaConfig,
    key: DecisionKey,
    shape: Shape,
    *,
    stage: StageTimer = untimed,
    **_: Any,
) -> tuple[Decision, None]:
    with stage("fuse"):
        if seen is None or key.step == 1:
            return _everything(shape), state
        attention = part(seen, "mean_all_rows", "sp_vla")[-1]
        edges = _edges(seen, config, shape)
        if config.budget == "fixed_r":
            return _fixed(attention, edges, config.rate, shape), state
        return _by_velocity(attention, edges, _threshold(seen, config), shape), state


def _everything(shape: Shape) -> Decision:
    points = np.ones(shape.n_3d, np.bool_) if shape.n_3d else None
    return Decision(np.ones(shape.n_2d, np.bool_), None, keep_3d_tokens=points, pruned=False)


def _edges(seen: Observables, config: SpVlaConfig, shape: Shape) -> Mask:
    """(N_2D,) image patches with an edge pixel, of all views."""
    images = part(seen, "images", "sp_vla")
    if len(images) * PATCHES_PER_VIEW != shape.n_2d:
        raise TraceError(f"{len(images)} images for {shape.n_2d} image tokens; pruner 'sp_vla' needs one per view")
    return np.concatenate([edge_patches(image, config.canny_low, config.canny_high) for image in images])


def _fixed(attention: npt.NDArray[np.float32], edges: Mask, rate: float, shape: Shape) -> Decision:
    image, point = attention[: shape.n_2d], attention[shape.n_2d :]
    budget = round((shape.n_2d + shape.n_3d) * (1 - rate))
    order = np.argsort(-image.astype(np.float64), kind="stable")
    beyond_edges = np.cumsum(~edges[order])  # how many patches the first a add to the edges
    points = np.minimum(np.arange(1, shape.n_2d + 1), shape.n_3d)
    fits = np.flatnonzero(edges.sum() + beyond_edges + points <= budget)
    count = int(fits[-1]) + 1 if fits.size else 1
    keep_3d = top(point, min(count, shape.n_3d)) if shape.n_3d else None
    return Decision(edges | top(image, count), None, keep_3d_tokens=keep_3d)


def _threshold(seen: Observables, config: SpVlaConfig) -> float:
    """T, the share of attention to keep; 1 below the speed threshold."""
    if seen.displacement_m is None:
        raise TraceError("pruner 'sp_vla' with budget = 'velocity' needs the executed actions, which this trace lacks")
    speed = min(seen.displacement_m * 1000 / config.full_speed_mm, 1.0)
    if speed <= config.v_threshold:
        return 1.0
    return 1.0 - (speed - config.v_threshold) * config.z_min / (1 - config.v_threshold)


def _by_velocity(attention: npt.NDArray[np.float32], edges: Mask, threshold: float, shape: Shape) -> Decision:
    if threshold >= 1:
        return _everything(shape)
    image, point = attention[: shape.n_2d], attention[shape.n_2d :]
    keep_3d = top(point, _prefix(point, threshold)) if shape.n_3d else None
    return Decision(edges | top(image, _prefix(image, threshold)), None, keep_3d_tokens=keep_3d)


def _prefix(attention: npt.NDArray[np.float32], threshold: float) -> int:
    """How many of the highest scores have a cumulative share below `threshold`, plus one.

    Shares are of integers in units of 2⁻⁵⁰ of the largest, whose sums are exact.
    """
    ordered = np.sort(attention.astype(np.float64))[::-1]
    if not ordered[0] > 0:
        return 1
    whole = (ordered * 2.0 ** (50 - np.frexp(ordered[0])[1])).astype(np.int64)
    cumulative = np.cumsum(whole)
    below = int(np.count_nonzero(cumulative / cumulative[-1] < threshold))
    return min(below + 1, int(ordered.size))


def _requires(config: SpVlaConfig) -> frozenset[str]:
    names = frozenset({"mean_all_rows", "images"})
    return names | {"displacement_m"} if config.budget == "velocity" else names


SP_VLA = Pruner(
    kind="sp_vla",
    config=SpVlaConfig,
    observes="forward",
    reads="observables",
    requires=_requires,
    initial_state=lambda _config, _shape: None,
    decide=_decide,
    needs_pinned_fps=lambda _config: True,
)
