"""Stages 1 and 2 and the fusion of Algorithm 1, compiled; each writes its part of an `Outcome` and its margins.

Sets are bits: 0 nothing, 1 = {2D}, 2 = {3D}, 3 = {2D, 3D}. A margin is value - threshold of the test named.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tracekit.philox import Modality, Purpose, philox_rounds
from tracekit.pruning._compile import compiled
from tracekit.pruning.arrays import Held, Outcome, Rule, Sets
from tracekit.pruning.fixed_point import fixed, unit_scale, unscale
from tracekit.pruning.kmeans import partition

__all__ = ["background", "background_draws", "cluster", "fuse", "stage1", "stage2"]

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
def stage1(rule: Rule, held: Held, tau_2d: float, tau_3d: float, out: Outcome) -> None:
    """S1 per patch: {2D} if M̂_3D^S1 < τ_2D, {3D} if it is > τ_3D, else both; {2D} for a policy without points."""
    if not rule.has_points or not rule.s1:
        out.s1[:] = BOTH if rule.has_points else ONLY_2D
        return
    for patch in range(out.s1.size):
        saliency = held.smoothed[1, patch]
        out.margins[TAU_2D, patch] = saliency - tau_2d
        out.margins[TAU_3D, patch] = saliency - tau_3d
        out.s1[patch] = ONLY_2D if saliency < tau_2d else ONLY_3D if saliency > tau_3d else BOTH


@compiled
def cluster(rule: Rule, held: Held, sets: Sets) -> None:
    """Exact 1-D k-means (K = 3) of the cluster scores into `sets`; where S2 is off nothing is clustered."""
    if not rule.s2:
        return
    scores = np.empty(sets.ranks.size)
    for patch in range(scores.size):
        scores[patch] = _score(rule, held, patch)
    sets.found[0] = partition(scores, 3, sets.ranks, sets.centroids)


@compiled
def stage2(rule: Rule, held: Held, sets: Sets, draws: npt.NDArray[np.float64], out: Outcome) -> None:
    """S2 per patch: the clusters become object, robot and background, then each has its own rule; all if S2 is off."""
    if not rule.s2:
        for patch in range(out.s2.size):
            out.s2[patch] = BOTH
        return
    _name(rule, held, sets, out)
    _robot(rule, held, out)
    _object(rule, held, out)
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
def _score(rule: Rule, held: Held, patch: int) -> float:
    """What a patch is clustered by."""
    if rule.smoothed_clusters:
        return float(held.smoothed[4, patch])
    if rule.separate:
        return float(held.attention[0, patch])
    return float(held.attention[0, patch] + held.attention[1, patch])


@compiled
def _name(rule: Rule, held: Held, sets: Sets, out: Outcome) -> None:
    """Name clusters from the top; the margin is the distance to the nearest cut, half-way between two centroids."""
    count = sets.found[0]
    for patch in range(out.cluster.size):
        score, nearest = _score(rule, held, patch), np.nan
        for index in range(count - 1):
            distance = score - 0.5 * (sets.centroids[index] + sets.centroids[index + 1])
            if index == 0 or abs(distance) < abs(nearest):
                nearest = distance
        out.margins[CLUSTER, patch] = nearest
        from_top = count - 1 - sets.ranks[patch]
        out.cluster[patch] = BACKGROUND + from_top if rule.inverse else OBJECT - from_top


@compiled
def _robot(rule: Rule, held: Held, out: Outcome) -> None:
    """{2D, 3D} if M̂_3D^S2 > μ_3D; else {2D} if M̂_2D^S2 > μ_2D; else nothing. Means and tests in fixed point."""
    set_2d, set_3d = held.smoothed[2], held.smoothed[3]
    scale_2d, scale_3d = unit_scale(set_2d), unit_scale(set_3d)
    sum_2d, sum_3d, size = 0, 0, 0
    for patch in range(out.s2.size):
        counted = rule.baseline == ALL_PATCHES or not rule.has_points or held.points[patch] > 0
        if counted and (rule.baseline != PER_SET or out.cluster[patch] == ROBOT):
            sum_2d += fixed(set_2d[patch], scale_2d)
            sum_3d += fixed(set_3d[patch], scale_3d)
            size += 1
    size = max(size, 1)  # the mean over no patch is 0
    for patch in range(out.s2.size):
        if out.cluster[patch] != ROBOT:
            continue
        excess_3d = fixed(set_3d[patch], scale_3d) * size - sum_3d
        excess_2d = fixed(set_2d[patch], scale_2d) * size - sum_2d
        if rule.has_points:
            out.margins[MU_3D, patch] = unscale(excess_3d, size, scale_3d)
        if rule.has_points and excess_3d > 0:
            out.s2[patch] = BOTH
        else:
            out.margins[MU_2D, patch] = unscale(excess_2d, size, scale_2d)
            out.s2[patch] = ONLY_2D if excess_2d > 0 or rule.robot_keeps_2d else NOTHING


@compiled
def _object(rule: Rule, held: Held, out: Outcome) -> None:
    """{2D} where 2D carries nearly everything and 3D adds nearly nothing, else both."""
    at_least, at_most = rule.object_2d_min, rule.object_3d_max
    if rule.quantiles:
        at_least = _quantile(held.smoothed[2], out.cluster, 0.9)
        at_most = _quantile(held.smoothed[3], out.cluster, 0.1)
    for patch in range(out.s2.size):
        if out.cluster[patch] != OBJECT:
            continue
        out.s2[patch] = BOTH if rule.has_points else ONLY_2D
        if rule.has_points:
            above, below = held.smoothed[2, patch] - at_least, held.smoothed[3, patch] - at_most
            out.margins[OBJECT_2D, patch], out.margins[OBJECT_3D, patch] = above, below
            if above >= 0 and below <= 0:
                out.s2[patch] = ONLY_2D


@compiled
def background(rule: Rule, draws: npt.NDArray[np.float64], rate: float, out: Outcome) -> None:
    """Nothing where the patch's draw is below `rate`, else both; `stratified` drops exactly round(rate·n) of them.

    Those are the ones with the lowest draws, ties by lower index; their cut is half-way to the first draw that is kept.
    """
    threshold, ties, cut = rate, 0, rate
    if rule.draw == STRATIFIED:
        threshold, ties, cut = _stratified(draws, out.cluster, rate)
    for patch in range(draws.size):
        if out.cluster[patch] != BACKGROUND:
            continue
        dropped = draws[patch] < threshold
        if draws[patch] == threshold and ties > 0:
            dropped = True
            ties -= 1
        kept = BOTH if rule.has_points else ONLY_2D
        out.margins[DRAW, patch] = draws[patch] - cut
        out.s2[patch] = NOTHING if dropped else kept


@compiled
def _stratified(draws: npt.NDArray[np.float64], cluster: npt.NDArray[np.int8], rate: float) -> tuple[float, int, float]:
    """The highest draw to drop, how many that equal it are dropped, and the cut for the margin."""
    ordered = _sorted_members(draws, cluster, BACKGROUND)
    dropped = round(rate * ordered.size)
    if dropped == 0:
        return 0.0, 0, 0.5 * ordered[0] if ordered.size else 0.0
    last = ordered[dropped - 1]
    following = ordered[dropped] if dropped < ordered.size else 1.0
    ties = 0
    for place in range(dropped):
        if ordered[place] == last:
            ties += 1
    return last, ties, 0.5 * (last + following)


@compiled
def _quantile(values: npt.NDArray[np.float64], cluster: npt.NDArray[np.int8], share: float) -> float:
    """The quantile over the object set, by linear interpolation between order statistics; 0 for an empty set."""
    ordered = _sorted_members(values, cluster, OBJECT)
    if ordered.size == 0:
        return 0.0
    place = share * (ordered.size - 1)
    below = int(place)
    above = min(below + 1, ordered.size - 1)
    return float(ordered[below] + (ordered[above] - ordered[below]) * (place - below))


@compiled
def _sorted_members(
    values: npt.NDArray[np.float64], cluster: npt.NDArray[np.int8], wanted: int
) -> npt.NDArray[np.float64]:
    """The `wanted` set's values in ascending order: as int64, which for floats ≥ 0 is the same order and faster."""
    members = np.empty(values.size)
    count = 0
    for patch in range(values.size):
        if cluster[patch] == wanted:
            members[count] = values[patch]
            count += 1
    return np.sort(members[:count].view(np.int64)).view(np.float64)
