"""Pruning towards a given rate (row 13): `soft` moves thresholds, `hard_topk` counts tokens."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tracekit.pruning._compile import compiled
from tracekit.pruning.arrays import Held, Outcome, Rule
from tracekit.pruning.options import kept_count
from tracekit.pruning.stages import background, fuse, stage1

__all__ = ["hard_budget", "soft_budget"]

KEEP, DROP = 0, 1
ALONG_BACKGROUND, ALONG_GAP = 0, 1
MOST_CLUSTERS = 2
GRID = 1 << 24
"""Background rate and gap are bisected in steps of 2⁻²⁴, which is what a draw can resolve."""

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]

_kept_count = compiled(kept_count)


@compiled
def soft_budget(rule: Rule, held: Held, draws: Floats, out: Outcome) -> None:
    """Bring the step's pruning rate nearest to `rule.rate`; `out` holds the fused outcome before and after.

    First the background rate b is bisected in [0, 1]. If all of the background is not enough, the region that keeps
    both modalities is narrowed to τ_2D + s·g/2, τ_3D - s·g/2 with g = τ_3D - τ_2D and s bisected in [0, 1]. The rate
    never falls as b or s grows. Of settings equally near, the one that prunes least, then the lowest. What is reached
    stands in the notes.
    """
    step, gap, most = 0, 0, 0
    if rule.s2:
        step, most = _nearest(rule, held, draws, out, ALONG_BACKGROUND, 0), GRID
    if rule.s1 and rule.has_points and _attempt(rule, held, draws, out, most, 0) < rule.rate:
        gap = _nearest(rule, held, draws, out, ALONG_GAP, step)
    out.notes[0] = rule.rate
    out.notes[1] = _attempt(rule, held, draws, out, step, gap)
    out.notes[2], out.notes[3] = step / GRID, gap / GRID


@compiled
def _nearest(rule: Rule, held: Held, draws: Floats, out: Outcome, axis: int, step: int) -> int:
    """The place in 0 ... GRID whose rate is nearest to the target; of equal ones the one before, then the lowest."""
    highest = _rate_at(rule, held, draws, out, axis, step, GRID)
    if highest <= rule.rate:
        return _first_reaching(rule, held, draws, out, axis, step, highest)
    place = _first_reaching(rule, held, draws, out, axis, step, rule.rate)
    if place == 0:
        return 0
    below = _rate_at(rule, held, draws, out, axis, step, place - 1)
    if _rate_at(rule, held, draws, out, axis, step, place) - rule.rate < rule.rate - below:
        return place
    return _first_reaching(rule, held, draws, out, axis, step, below)


@compiled
def _first_reaching(rule: Rule, held: Held, draws: Floats, out: Outcome, axis: int, step: int, rate: float) -> int:
    first, last = 0, GRID
    while first < last:
        middle = (first + last) // 2
        if _rate_at(rule, held, draws, out, axis, step, middle) < rate:
            first = middle + 1
        else:
            last = middle
    return first


@compiled
def _rate_at(rule: Rule, held: Held, draws: Floats, out: Outcome, axis: int, step: int, place: int) -> float:
    """The rate at `place` along the axis that is searched; along the gap the background stays at `step`."""
    if axis == ALONG_GAP:
        return _attempt(rule, held, draws, out, step, place)
    return _attempt(rule, held, draws, out, place, 0)


@compiled
def _attempt(rule: Rule, held: Held, draws: Floats, out: Outcome, step: int, gap: int) -> float:
    """The rate with background rate step/2²⁴ and the gap closed by gap/2²⁴; the outcome is left in `out`."""
    if rule.s2:
        background(rule, draws, step / GRID, out)
    inwards = gap / GRID * (rule.tau_3d - rule.tau_2d) / 2
    stage1(rule, held, rule.tau_2d + inwards, rule.tau_3d - inwards, out)
    fuse(rule, out)
    kept_2d, projected, kept = 0, 0, 0
    for patch in range(out.keep_2d.size):
        kept_2d += int(out.keep_2d[patch])
        projected += held.points[patch]
        kept += held.points[patch] * int(out.keep_3d[patch])
    lost = max(rule.n_3d - projected, 0)
    share = 1.0
    if rule.prune_3d and rule.unprojected == DROP:
        share = 0.0
    elif rule.prune_3d and rule.unprojected != KEEP and projected:
        share = kept / projected
    tokens = out.keep_2d.size + projected + lost
    return 1.0 - (kept_2d + kept + share * lost) / tokens


@compiled
def hard_budget(rule: Rule, held: Held, patch: npt.NDArray[np.int32], out: Outcome) -> None:
    """Exactly round(N·(1 - rate)) tokens per modality, ordered by (mask, cluster, M̂^S2, lower index).

    A point token ranks as its `patch` (N_3D,), which correspondence `index` leaves unread; those without one (-1) come
    last. What is not to be pruned stays whole.
    """
    if rule.prune_3d and out.tokens.size:
        if rule.index:
            patch = np.arange(out.tokens.size).astype(np.int32)
        placed = np.flatnonzero(patch >= 0)
        rank = patch[placed]
        _keep_first(rule, placed, out.keep_3d[rank], out.cluster[rank], held.smoothed[3][rank], out.tokens)
    if rule.prune_2d:
        patches = np.arange(out.keep_2d.size)
        _keep_first(rule, patches, out.keep_2d.copy(), out.cluster, held.smoothed[2], out.keep_2d)


@compiled
def _keep_first(
    rule: Rule, ranked: Indices, mask: Mask, cluster: npt.NDArray[np.int8], value: Floats, out: Mask
) -> None:
    """Leave true in `out` the first of the `ranked` (ascending) tokens by mask, cluster and value, then the others."""
    left = _kept_count(out.size, rule.rate)
    order = np.argsort(-value, kind="mergesort")
    unranked = np.ones(out.size, np.bool_)
    for index in range(out.size):
        out[index] = False
    for wanted in (True, False):
        for number in range(MOST_CLUSTERS, -2, -1):
            for place in order:
                if mask[place] == wanted and cluster[place] == number:
                    unranked[ranked[place]] = False
                    if left > 0:
                        out[ranked[place]] = True
                        left -= 1
    for index in range(out.size):
        if unranked[index] and left > 0:
            out[index] = True
            left -= 1
