"""Pruning towards a given rate (row 13): `soft` moves thresholds, `hard_topk` counts tokens."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tracekit.pruning._compile import compiled
from tracekit.pruning.arrays import Memory, Outcome, Rule
from tracekit.pruning.options import kept_count
from tracekit.pruning.stages import background, fuse, stage1

__all__ = ["soft_budget", "top_images", "top_points"]

KEEP, DROP = 0, 1
GRID = 1 << 24
"""Background rate and gap are bisected in steps of 2⁻²⁴, which is what a draw can resolve."""

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def soft_budget(rule: Rule, memory: Memory, draws: Floats, out: Outcome) -> None:
    """Bring the step's pruning rate nearest to `rule.rate`; `out` holds the fused outcome before and after.

    First the background rate b is bisected in [0, 1]. If all of the background is not enough, the region that keeps
    both modalities is narrowed to τ_2D + s·g/2, τ_3D - s·g/2 with g = τ_3D - τ_2D and s bisected in [0, 1]. The rate
    never falls as b or s grows. Of settings equally near, the one that prunes least, then the lowest. What is reached
    stands in the notes.
    """
    step, gap, most = 0, 0, 0
    if rule.s2:
        step, most = _nearest(lambda place: _attempt(rule, memory, draws, out, place, 0), rule.rate), GRID
    if rule.s1 and rule.has_points and _attempt(rule, memory, draws, out, most, 0) < rule.rate:
        gap = _nearest(lambda place: _attempt(rule, memory, draws, out, step, place), rule.rate)
    out.notes[:] = rule.rate, _attempt(rule, memory, draws, out, step, gap), step / GRID, gap / GRID


def _nearest(rate_at: Callable[[int], float], target: float) -> int:
    """The place in 0 ... GRID whose rate is nearest to the target; of equal ones the one before, then the lowest."""
    highest = rate_at(GRID)
    if highest <= target:
        return _first_reaching(rate_at, highest)
    place = _first_reaching(rate_at, target)
    below = rate_at(place - 1) if place else -math.inf
    return place if rate_at(place) - target < target - below else _first_reaching(rate_at, below)


def _first_reaching(rate_at: Callable[[int], float], rate: float) -> int:
    first, last = 0, GRID
    while first < last:
        middle = (first + last) // 2
        if rate_at(middle) < rate:
            first = middle + 1
        else:
            last = middle
    return first


@compiled
def _attempt(rule: Rule, memory: Memory, draws: Floats, out: Outcome, step: int, gap: int) -> float:
    """The rate with background rate step/2²⁴ and the gap closed by gap/2²⁴; the outcome is left in `out`."""
    if rule.s2:
        background(rule, draws, step / GRID, out)
    inwards = gap / GRID * (rule.tau_3d - rule.tau_2d) / 2
    stage1(rule, memory, rule.tau_2d + inwards, rule.tau_3d - inwards, out)
    fuse(rule, out)
    kept_2d, projected, kept = 0, 0, 0
    for patch in range(out.keep_2d.size):
        kept_2d += int(out.keep_2d[patch])
        projected += memory.points[patch]
        kept += memory.points[patch] * int(out.keep_3d[patch])
    lost = max(rule.n_3d - projected, 0)
    share = 1.0
    if rule.prune_3d and rule.unprojected == DROP:
        share = 0.0
    elif rule.prune_3d and rule.unprojected != KEEP and projected:
        share = kept / projected
    tokens = out.keep_2d.size + projected + lost
    return 1.0 - (kept_2d + kept + share * lost) / tokens


def top_images(out: Outcome, rate: float) -> Mask:
    """(N_2D,) the round(N·(1 - rate)) image tokens that come first by (Mask_2D, cluster, M̂_2D^S2, lower index)."""
    patches = out.keep_2d.size
    return _first(rate, patches, np.arange(patches), out.keep_2d, out.cluster, out.smoothed[2])


def top_points(out: Outcome, rate: float, patch: npt.NDArray[np.int32]) -> Mask:
    """(N_3D,) the same for point tokens, a point ranking as its `patch` (N_3D,) and those without one (-1) last."""
    placed = np.flatnonzero(patch >= 0)
    rank = patch[placed]
    return _first(rate, patch.size, placed, out.keep_3d[rank], out.cluster[rank], out.smoothed[3][rank])


def _first(
    rate: float, tokens: int, ranked: npt.NDArray[np.int64], mask: Mask, cluster: npt.NDArray[np.int8], value: Floats
) -> Mask:
    """(tokens,) True for the first kept_count of `ranked` (ascending indices) by the keys, then of the others."""
    order = ranked[np.lexsort((-value, -cluster, ~mask))]
    rest = np.setdiff1d(np.arange(tokens), ranked)
    keep = np.zeros(tokens, np.bool_)
    keep[np.concatenate([order, rest])[: kept_count(tokens, rate)]] = True
    return keep
