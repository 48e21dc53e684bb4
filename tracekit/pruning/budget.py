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
BACKGROUND, OBJECT = 0, 2
STRATIFIED = 2
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
    ordered, rates = np.empty(0), np.empty(0)
    step, gap = 0, 0
    if rule.s2:
        ordered, rates = _background_rates(rule, held, draws, out)
        step = _nearest(rule, held, ordered, rates, out)
        background(rule, draws, step / GRID, out)
    reached = _at_gap(rule, held, 0, out)
    if rule.s1 and rule.has_points and (rates[-1] if rule.s2 else reached) < rule.rate:
        gap = _nearest(rule, held, ordered, np.empty(0), out)
        reached = _at_gap(rule, held, gap, out)
    out.notes[0], out.notes[1], out.notes[2], out.notes[3] = rule.rate, reached, step / GRID, gap / GRID


@compiled
def _nearest(rule: Rule, held: Held, ordered: Floats, rates: Floats, out: Outcome) -> int:
    """The place in 0 ... GRID whose rate is nearest to the target; of equal ones the one before, then the lowest.

    Places are of the background rate where `rates` are given, and else of the share by which the gap is closed.
    """
    highest = _rate_at(rule, held, ordered, rates, out, GRID)
    if highest <= rule.rate:
        return _first_reaching(rule, held, ordered, rates, out, highest)
    place = _first_reaching(rule, held, ordered, rates, out, rule.rate)
    if place == 0:
        return place
    below = _rate_at(rule, held, ordered, rates, out, place - 1)
    if _rate_at(rule, held, ordered, rates, out, place) - rule.rate < rule.rate - below:
        return place
    return _first_reaching(rule, held, ordered, rates, out, below)


@compiled
def _first_reaching(rule: Rule, held: Held, ordered: Floats, rates: Floats, out: Outcome, rate: float) -> int:
    first, last = 0, GRID
    while first < last:
        middle = (first + last) // 2
        if _rate_at(rule, held, ordered, rates, out, middle) < rate:
            first = middle + 1
        else:
            last = middle
    return first


@compiled
def _rate_at(rule: Rule, held: Held, ordered: Floats, rates: Floats, out: Outcome, place: int) -> float:
    if rates.size == 0:
        return _at_gap(rule, held, place, out)
    if rule.draw == STRATIFIED:
        return float(rates[round(place / GRID * ordered.size)])
    return float(rates[np.searchsorted(ordered, place / GRID)])


@compiled
def _background_rates(rule: Rule, held: Held, draws: Floats, out: Outcome) -> tuple[Floats, Floats]:
    """The background's draws in ascending order, and (n + 1,) the rates once so many of the lowest are dropped."""
    background(rule, draws, 0.0, out)
    fuse(rule, out)
    members = np.flatnonzero(out.cluster == BACKGROUND)
    members = members[np.argsort(draws[members], kind="mergesort")]
    kept_2d, kept_3d, projected = _kept(held, out)
    rates = np.empty(members.size + 1)
    for place in range(rates.size):
        rates[place] = _rate(rule, out, kept_2d, kept_3d, projected)
        if place < members.size:
            patch = members[place]
            kept_2d -= int(rule.prune_2d and out.keep_2d[patch])
            kept_3d -= held.points[patch] * int(rule.prune_3d and out.keep_3d[patch])
    return draws[members], rates


@compiled
def _at_gap(rule: Rule, held: Held, place: int, out: Outcome) -> float:
    """The rate with the gap between τ_2D and τ_3D closed by place/2²⁴; the outcome is left in `out`."""
    inwards = place / GRID * (rule.tau_3d - rule.tau_2d) / 2
    stage1(rule, held, rule.tau_2d + inwards, rule.tau_3d - inwards, out)
    fuse(rule, out)
    kept_2d, kept_3d, projected = _kept(held, out)
    return _rate(rule, out, kept_2d, kept_3d, projected)


@compiled
def _kept(held: Held, out: Outcome) -> tuple[int, int, int]:
    """Image tokens and projected point tokens that are kept, and how many points are projected."""
    kept_2d, kept_3d, projected = 0, 0, 0
    for patch in range(out.keep_2d.size):
        kept_2d += int(out.keep_2d[patch])
        kept_3d += held.points[patch] * int(out.keep_3d[patch])
        projected += held.points[patch]
    return kept_2d, kept_3d, projected


@compiled
def _rate(rule: Rule, out: Outcome, kept_2d: int, kept_3d: int, projected: int) -> float:
    """The share of visual tokens that is pruned, unprojected points included."""
    lost = max(rule.n_3d - projected, 0)
    share = 1.0
    if rule.prune_3d and rule.unprojected == DROP:
        share = 0.0
    elif rule.prune_3d and rule.unprojected != KEEP and projected:
        share = kept_3d / projected
    tokens = out.keep_2d.size + projected + lost
    return 1.0 - (kept_2d + kept_3d + share * lost) / tokens


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
        for number in range(OBJECT, -2, -1):
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
