"""The plain numbers and arrays that the compiled stages of Algorithm 1 work on."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

__all__ = [
    "INDICATORS",
    "MARGINS",
    "NOTES",
    "Held",
    "Memory",
    "Outcome",
    "Rule",
    "Seen",
    "Sets",
    "new_held",
    "new_outcome",
    "new_sets",
]

INDICATORS = ("m_2d_s1", "m_3d_s1", "m_2d_s2", "m_3d_s2", "cluster_score")
"""What stage 3 smooths, in the order of the first axis of `Memory.smoothed`."""

MARGINS = ("tau_2d", "tau_3d", "cluster", "mu_2d", "mu_3d", "object_2d", "object_3d", "draw")
"""Thresholds that are tested, in the order of the margin axis."""


NOTES = ("target_rate", "reached_rate", "background_rate", "gap_closed")
"""What a soft budget says of the step, in the order of `Outcome.notes`: rate of tokens to prune, 2D and 3D together,
the rate reached, the background rate used, and the share s by which the gap between τ_2D and τ_3D was closed."""


class Rule(Protocol):
    """`TriStageConfig` as numbers: one entry of the structured array that `rules_of` builds from these names and types.

    Choices are indices into the option's list of values.
    """

    s1: bool
    s2: bool
    s3: bool
    prune_2d: bool
    prune_3d: bool
    has_points: bool
    tau_2d: float
    tau_3d: float
    beta: float
    k: int
    window_mean: bool
    smooth_moving: bool
    clamp: bool
    separate: bool
    smoothed_clusters: bool
    inverse: bool
    baseline: int
    quantiles: bool
    object_2d_min: float
    object_3d_max: float
    background_rate: float
    draw: int
    robot_keeps_2d: bool
    protect: int
    soft_budget: bool
    hard_budget: bool
    rate: float
    n_3d: int
    index: bool
    unprojected: int
    prune_from: int


class Seen(NamedTuple):
    """The scores of one step, float32 (N,) each, `points` int32 (N,); or of an episode, (steps, N)."""

    norm_2d: npt.NDArray[np.float32]
    norm_3d: npt.NDArray[np.float32]
    attention_2d: npt.NDArray[np.float32]
    attention_3d: npt.NDArray[np.float32]
    ortho_3d: npt.NDArray[np.float32]
    points: npt.NDArray[np.int32]


class Memory(NamedTuple):
    """What Algorithm 1 remembers of an episode, per patch; the compiled stage 3 writes into it.

    `smoothed`: (5, N) float64, X̂ of the `INDICATORS`. `updates`: (N,) int64, n_p: how often the patch was observed.
    `attention`: (2, N) float64, the last observed ‖α_2D‖₁ and ‖α_3D‖₁. `points`: (N,) int32, its last observed point
    count. `window`: (k, 5, N) float64, the last k observed values as a ring, oldest next to be overwritten; (0, 5, N)
    unless the sliding mean is asked for.
    """

    smoothed: npt.NDArray[np.float64]
    updates: npt.NDArray[np.int64]
    attention: npt.NDArray[np.float64]
    points: npt.NDArray[np.int32]
    window: npt.NDArray[np.float64]


class Held(NamedTuple):
    """What stages 1 and 2 read of the memory at one step, or, with an axis of steps in front, along an episode."""

    smoothed: npt.NDArray[np.float64]
    attention: npt.NDArray[np.float64]
    points: npt.NDArray[np.int32]


class Sets(NamedTuple):
    """Clusters: `ranks` (N,) int8, 0 the lowest; `centroids` (3,) float64, ascending; `found` (1,), their number."""

    ranks: npt.NDArray[np.int8]
    centroids: npt.NDArray[np.float64]
    found: npt.NDArray[np.int64]


class Outcome(NamedTuple):
    """What Algorithm 1 answers for one step: (N,) each, `tokens` (N_3D,), `margins` (8, N) and `notes` (4,).

    `tokens` is the mask over point tokens where the rule is about them, and all true elsewhere.
    """

    s1: npt.NDArray[np.uint8]
    s2: npt.NDArray[np.uint8]
    cluster: npt.NDArray[np.int8]
    conflict: npt.NDArray[np.bool_]
    keep_2d: npt.NDArray[np.bool_]
    keep_3d: npt.NDArray[np.bool_]
    tokens: npt.NDArray[np.bool_]
    margins: npt.NDArray[np.float64]
    notes: npt.NDArray[np.float64]


def new_outcome(steps: tuple[int, ...], patches: int, tokens: int, *, margins: bool = True) -> Outcome:
    """Arrays with the axes `steps` in front: everything kept, no margin tested; without `margins`, room for one step's.

    Those that are not wanted have axes of length 1 in place of `steps`.
    """
    shape, once = (*steps, patches), tuple(1 for _ in steps)
    return Outcome(
        s1=np.full(shape, 3, np.uint8),
        s2=np.full(shape, 3, np.uint8),
        cluster=np.full(shape, -1, np.int8),
        conflict=np.zeros(shape, np.bool_),
        keep_2d=np.ones(shape, np.bool_),
        keep_3d=np.ones(shape, np.bool_),
        tokens=np.ones((*steps, tokens), np.bool_),
        margins=np.full((*(steps if margins else once), len(MARGINS), patches), np.nan),
        notes=np.full((*steps, len(NOTES)), np.nan),
    )


def new_held(steps: int, patches: int) -> Held:
    """Room for what is held along an episode."""
    return Held(
        np.empty((steps, len(INDICATORS), patches)),
        np.empty((steps, 2, patches)),
        np.empty((steps, patches), np.int32),
    )


def new_sets(*shape: int) -> Sets:
    """Arrays for the clusters of `shape` (N,), (steps, N) or more."""
    steps = shape[:-1]
    return Sets(np.zeros(shape, np.int8), np.zeros((*steps, 3)), np.zeros((*steps, 1), np.int64))
