"""Stages 1 and 2 and the fusion of Algorithm 1, compiled; each writes its part of an `Outcome` and its margins.

Sets are bits: 0 nothing, 1 = {2D}, 2 = {3D}, 3 = {2D, 3D}. A margin is value - threshold of the test named.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tracekit.philox import Modality, Purpose, philox_rounds
from tracekit.pruning._compile import compiled
from tracekit.pruning.arrays import Memory, Outcome, Rule
from tracekit.pruning.fixed_point import fixed, total, unit_exponent, unscale
from tracekit.pruning.kmeans import partition

__all__ = ["background", "background_draws", "fuse", "stage1", "stage2"]

TAU_2D, TAU_3D, CLUSTER, MU_2D, MU_3D, OBJECT_2D, OBJECT_3D, DRAW = range(8)
NOTHING, ONLY_2D, ONLY_3D, BOTH = 0, 1, 2, 3
BACKGROUND, ROBOT, OBJECT = 0, 1, 2
WITH_POINTS, ALL_PATCHES, PER_SET = 0, 1, 2
STRATIFIED = 2
PROTECT_OBJECT, PROTECT_ALL = 1, 2

_rounds = compiled(philox_rounds)
_PURPOSE, _INDEX_BASE = np.uint64(Purpose.BACKGROUND), np.uint64(Modality.PATCH << 16)


@compiled
def background_draws(seed: np.uint64, episode_uid: np.uint64, step: int, draws: npt.NDArray[np.float64]) -> None:
    """One uniform per patch into `draws` (N,), as `tracekit.philox.uniforms` of purpose `BACKGROUND` draws it."""
    low = np.uint64(0xFFFFFFFF)
    key_low, key_high = seed & low, seed >> np.uint64(32)
    uid = episode_uid & low
    for patch in range(draws.size):
        words = _rounds(uid, np.uint64(step), _PURPOSE, _INDEX_BASE + np.uint64(patch), key_low, key_high)
        draws[patch] = float(words[0] >> np.uint64(8)) * 2.0**-24


@compiled
def stage1(rule: Rule, memory: Memory, tau_2d: float, tau_3d: float, out: Outcome) -> None:
    """S1 per patch: {2D} if M̂_3D^S1 < τ_2D, {3D} if it is > τ_3D, else both; {2D} for a policy without points."""
    for patch in range(out.s1.size):
        if not rule.has_points:
            out.s1[patch] = ONLY_2D
            continue
        out.s1[patch] = BOTH
        if not rule.s1:
            continue
        saliency = memory.smoothed[1, patch]
        out.margins[TAU_2D, patch] = saliency - tau_2d
        out.margins[TAU_3D, patch] = saliency - tau_3d
        if saliency < tau_2d:
            out.s1[patch] = ONLY_2D
        elif saliency > tau_3d:
            out.s1[patch] = ONLY_3D


@compiled
def stage2(rule: Rule, memory: Memory, draws: npt.NDArray[np.float64], out: Outcome) -> None:
    """S2 per patch: cluster into object, robot and background, then each set's own rule. {2D, 3D} where S2 is off."""
    if not rule.s2:
        out.s2[:] = BOTH
        return
    _cluster(rule, memory, out)
    _robot(rule, memory, out)
    _object(rule, memory, out)
    background(rule, draws, rule.background_rate, out)


@compiled
def fuse(rule: Rule, out: Outcome) -> None:
    """C = ∅ where S2 = ∅, else S1 ∩ S2, or S2 where that is empty (a conflict); masks from C (Eq. 10)."""
    for patch in range(out.s1.size):
        s1, s2 = out.s1[patch], out.s2[patch]
        chosen = s1 & s2
        out.conflict[patch] = s2 != NOTHING and chosen == NOTHING
        if out.conflict[patch]:
            chosen = s2
        protected = rule.protect == PROTECT_ALL or (rule.protect == PROTECT_OBJECT and out.cluster[patch] == OBJECT)
        if protected and s2 != NOTHING:
            chosen |= np.uint8(ONLY_2D)
        out.keep_2d[patch] = not rule.prune_2d or (chosen & ONLY_2D) != 0
        out.keep_3d[patch] = not rule.prune_3d or (chosen & ONLY_3D) != 0


@compiled
def _cluster(rule: Rule, memory: Memory, out: Outcome) -> None:
    """Exact 1-D k-means (K = 3); the margin is the distance to the nearest cut, half-way between two centroids."""
    scores = memory.attention[0].copy()
    if rule.smoothed_clusters:
        scores[:] = memory.smoothed[4]
    elif not rule.separate:
        scores += memory.attention[1]
    centroids = np.zeros(3)
    count = partition(scores, 3, out.cluster, centroids)
    for patch in range(scores.size):
        nearest = np.nan
        for index in range(count - 1):
            distance = scores[patch] - 0.5 * (centroids[index] + centroids[index + 1])
            if np.isnan(nearest) or abs(distance) < abs(nearest):
                nearest = distance
        out.margins[CLUSTER, patch] = nearest
        from_top = count - 1 - out.cluster[patch]
        out.cluster[patch] = BACKGROUND + from_top if rule.inverse else OBJECT - from_top


@compiled
def _robot(rule: Rule, memory: Memory, out: Outcome) -> None:
    """{2D, 3D} if M̂_3D^S2 > μ_3D; else {2D} if M̂_2D^S2 > μ_2D; else nothing. Means and tests in fixed point."""
    set_2d, set_3d = memory.smoothed[2], memory.smoothed[3]
    members = np.empty(out.s2.size, np.bool_)
    for patch in range(members.size):
        counted = rule.baseline == ALL_PATCHES or not rule.has_points or memory.points[patch] > 0
        members[patch] = counted and (rule.baseline != PER_SET or out.cluster[patch] == ROBOT)
    size = max(int(members.sum()), 1)  # the mean over no patch is 0
    exponent_2d, exponent_3d = unit_exponent(set_2d), unit_exponent(set_3d)
    sum_2d, sum_3d = total(set_2d, members, exponent_2d), total(set_3d, members, exponent_3d)
    for patch in range(members.size):
        if out.cluster[patch] != ROBOT:
            continue
        if rule.has_points:
            excess_3d = fixed(set_3d[patch], exponent_3d) * size - sum_3d
            out.margins[MU_3D, patch] = unscale(excess_3d, size, exponent_3d)
            if excess_3d > 0:
                out.s2[patch] = BOTH
                continue
        excess_2d = fixed(set_2d[patch], exponent_2d) * size - sum_2d
        out.margins[MU_2D, patch] = unscale(excess_2d, size, exponent_2d)
        out.s2[patch] = ONLY_2D if excess_2d > 0 or rule.robot_keeps_2d else NOTHING


@compiled
def _object(rule: Rule, memory: Memory, out: Outcome) -> None:
    """{2D} where 2D carries nearly everything and 3D adds nearly nothing, else both."""
    at_least, at_most = rule.object_2d_min, rule.object_3d_max
    members = out.cluster == OBJECT
    if rule.quantiles and members.any():
        at_least = _quantile(memory.smoothed[2][members], 0.9)
        at_most = _quantile(memory.smoothed[3][members], 0.1)
    for patch in range(members.size):
        if not members[patch]:
            continue
        if not rule.has_points:
            out.s2[patch] = ONLY_2D
            continue
        above, below = memory.smoothed[2, patch] - at_least, memory.smoothed[3, patch] - at_most
        out.margins[OBJECT_2D, patch], out.margins[OBJECT_3D, patch] = above, below
        out.s2[patch] = ONLY_2D if above >= 0 and below <= 0 else BOTH


@compiled
def background(rule: Rule, draws: npt.NDArray[np.float64], rate: float, out: Outcome) -> None:
    """Nothing where the patch's draw is below `rate`, else both; `stratified` drops exactly round(rate·n) of them."""
    members = np.flatnonzero(out.cluster == BACKGROUND)
    if rule.draw == STRATIFIED:
        _stratified(members, draws, rate, out)
    else:
        for patch in members:
            out.margins[DRAW, patch] = draws[patch] - rate
            out.s2[patch] = NOTHING if draws[patch] < rate else BOTH
    if not rule.has_points:
        out.s2[members] &= np.uint8(ONLY_2D)


@compiled
def _stratified(members: npt.NDArray[np.int64], draws: npt.NDArray[np.float64], rate: float, out: Outcome) -> None:
    """Drop the round(rate·n) lowest draws, ties by lower index; the cut is half-way to the first draw that is kept."""
    order = members[np.argsort(draws[members], kind="mergesort")]
    dropped = int(np.rint(rate * order.size))
    last = draws[order[dropped - 1]] if dropped else 0.0
    following = draws[order[dropped]] if dropped < order.size else 1.0
    for rank, patch in enumerate(order):
        out.margins[DRAW, patch] = draws[patch] - 0.5 * (last + following)
        out.s2[patch] = NOTHING if rank < dropped else BOTH


@compiled
def _quantile(values: npt.NDArray[np.float64], share: float) -> float:
    """The quantile by linear interpolation between order statistics."""
    ordered = np.sort(values)
    place = share * (ordered.size - 1)
    below = int(place)
    above = min(below + 1, ordered.size - 1)
    return float(ordered[below] + (ordered[above] - ordered[below]) * (place - below))
