"""Algorithm 1 with its defaults, patch by patch: what a first implementation looks like, to be timed against.

It reads like the paper and decides what `tracekit.pruning` decides for `TriStageConfig()`, unless rounding turns a tie:
sums are floating-point here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans

from tracekit.philox import Modality, Purpose, uniforms
from tracekit.pruning import DecisionKey, Scores
from tracekit.pruning.base import StageTimer, untimed
from tracekit.pruning.tri_stage import TriStageConfig

__all__ = ["LiteralState", "decide_literally", "sets_by_every_cut", "sets_by_scikit_learn"]

Doubles = npt.NDArray[np.float64]
Sets = npt.NDArray[np.int64]
BACKGROUND, ROBOT, OBJECT = 0, 1, 2
DEFAULT = TriStageConfig()


@dataclass
class LiteralState:
    """X̂ per patch as (M_2D, M_3D) of stage 1 and of stage 2, and the number of steps taken in; changed in place."""

    smoothed: list[list[float]] = field(default_factory=list)
    steps: int = 0


def decide_literally(
    scores: Scores,
    state: LiteralState,
    key: DecisionKey,
    sets_of: Callable[[Doubles], Sets],
    stage: StageTimer = untimed,
) -> tuple[list[bool], list[bool]]:
    """Mask_2D and Mask_3D over the patches at step `key.step`; `sets_of` clusters (N,) attention scores."""
    with stage("stage3"):
        _smooth(scores, state)
    with stage("stage1"):
        s1 = [_stage1(m_3d) for _, m_3d, _, _ in state.smoothed]
    with stage("stage2"):
        s2 = _stage2(scores, state, key, sets_of)
    with stage("fuse"):
        if key.step == 1:
            return [True] * len(s1), [True] * len(s1)
        chosen = [(one & two) or two for one, two in zip(s1, s2, strict=True)]
        return ["2D" in both for both in chosen], ["3D" in both for both in chosen]


def sets_by_scikit_learn(values: Doubles) -> Sets:
    """Object, robot and background by scikit-learn's k-means with ten starts, which is not always the optimum."""
    found = KMeans(3, n_init=10, random_state=0).fit(values[:, None])
    rank = np.argsort(np.argsort(found.cluster_centers_.ravel()))
    return np.asarray(rank[found.labels_], np.int64)


def sets_by_every_cut(values: Doubles) -> Sets:
    """The best of all ways to cut the sorted values in three."""
    ordered = np.sort(values)
    sums, squares = np.append(0, np.cumsum(ordered)), np.append(0, np.cumsum(ordered * ordered))

    def cost(start: int, stop: int) -> float:
        total = sums[stop] - sums[start]
        return float(squares[stop] - squares[start] - total * total / (stop - start))

    count = len(ordered)
    starts = [cut for cut in range(1, count) if ordered[cut] != ordered[cut - 1]]
    below, above = {cut: cost(0, cut) for cut in starts}, {cut: cost(cut, count) for cut in starts}
    cuts = [(one, two) for one in starts for two in starts if one < two]
    first, second = min(cuts, key=lambda cut: below[cut[0]] + cost(*cut) + above[cut[1]])
    return np.asarray((values >= ordered[first]).astype(np.int64) + (values >= ordered[second]), np.int64)


def _smooth(scores: Scores, state: LiteralState) -> None:
    """Stage 3 (Eq. 7 to 9) of Eq. 1, 5 and 6 per patch."""
    state.steps += 1
    t, k, beta = state.steps, DEFAULT.k, DEFAULT.beta
    for patch in range(len(scores.norm_2d)):
        f_2d, f_3d = float(scores.norm_2d[patch]), float(scores.norm_3d[patch])
        a_2d, a_3d = float(scores.attention_2d[patch]), float(scores.attention_3d[patch])
        features, attention = f_2d + f_3d or 1.0, a_2d + a_3d or 1.0
        ortho = float(scores.ortho_3d[patch])
        new = [f_2d / features, f_3d / features, a_2d / attention, ortho / attention]
        if t == 1:
            state.smoothed.append(new)
            continue
        old = state.smoothed[patch]
        past, present = ((t - 1) / t, 1 / t) if t < k else (beta, 1 - beta)
        state.smoothed[patch] = [past * x + present * y for x, y in zip(old, new, strict=True)]


def _stage1(m_3d: float) -> set[str]:
    if m_3d < DEFAULT.tau_2d:
        return {"2D"}
    if m_3d > DEFAULT.tau_3d:
        return {"3D"}
    return {"2D", "3D"}


def _stage2(
    scores: Scores, state: LiteralState, key: DecisionKey, sets_of: Callable[[Doubles], Sets]
) -> list[set[str]]:
    sets = sets_of(scores.attention_2d.astype(np.float64) + scores.attention_3d)
    draws = uniforms(key, Purpose.BACKGROUND, Modality.PATCH, np.arange(len(sets)))
    there = [patch for patch in range(len(sets)) if scores.points[patch] > 0]
    mean_2d = sum(state.smoothed[patch][2] for patch in there) / max(len(there), 1)
    mean_3d = sum(state.smoothed[patch][3] for patch in there) / max(len(there), 1)
    out = []
    for patch, region in enumerate(sets):
        _, _, m_2d, m_3d = state.smoothed[patch]
        if region == BACKGROUND:
            out.append(set[str]() if draws[patch] < DEFAULT.background_rate else {"2D", "3D"})
        elif region == ROBOT:
            out.append({"2D", "3D"} if m_3d > mean_3d else {"2D"} if m_2d > mean_2d else set())
        else:
            alone = m_2d >= DEFAULT.object_2d_min and m_3d <= DEFAULT.object_3d_max
            out.append({"2D"} if alone else {"2D", "3D"})
    return out
