"""Stage 3, temporal smoothing (Eq. 7 to 9), and what is held of patches that were not observed. Runs first."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tracekit.pruning._compile import compiled
from tracekit.pruning.arrays import Memory, Rule, Seen
from tracekit.pruning.fixed_point import fixed, unit_scale, unscale

__all__ = ["smooth"]


@compiled
def smooth(
    rule: Rule,
    memory: Memory,
    seen: Seen,
    observed: npt.NDArray[np.bool_],
    moving: npt.NDArray[np.bool_],
) -> None:
    """Take the scores of one step into `memory`, in place.

    With n the patch's updates so far, this one included (n = t where every patch is observed at every step):
    X̂₁ = X₁; X̂ₙ = ((n-1)/n)·X̂ₙ₋₁ + (1/n)·Xₙ for n < k (Eq. 8); X̂ₙ = β·X̂ₙ₋₁ + (1-β)·Xₙ from n = k on (Eq. 7, 9).
    Patches outside `observed` (N,) hold everything. `moving` (N,) marks patches of a moving camera, whose X̂ is X unless
    the rule smooths them too.
    Where a patch is not observed, the forward pass lacked tokens, which raises the attention shares of the rest: the α
    norms of the observed patches are then multiplied by Σ of their held values ÷ Σ of their new ones. Ratios are formed
    before, as a common factor does not change them.
    """
    factor = _attention_factor(memory, seen, observed)
    patches = observed.size
    for patch in range(patches):
        if observed[patch]:
            memory.attention[0, patch] = factor * np.float64(seen.attention_2d[patch])
            memory.attention[1, patch] = factor * np.float64(seen.attention_3d[patch])
            memory.points[patch] = seen.points[patch]
            memory.updates[patch] += 1
    raw = np.empty((5, patches))
    _indicators(rule, memory, seen, raw)
    past, present = np.empty(patches), np.empty(patches)
    anew = np.zeros(patches, np.bool_)
    for patch in range(patches):
        n = max(memory.updates[patch], 1)
        anew[patch] = n == 1 or not rule.s3 or (moving[patch] and not rule.smooth_moving)
        past[patch], present[patch] = ((n - 1) / n, 1 / n) if n < rule.k else (rule.beta, 1 - rule.beta)
    if rule.window_mean and rule.s3:
        _window_means(rule, memory, observed, anew, raw)
        return
    for index in range(5):
        for patch in range(patches):
            x, before = raw[index, patch], memory.smoothed[index, patch]
            smoothed = x if anew[patch] else past[patch] * before + present[patch] * x
            memory.smoothed[index, patch] = smoothed if observed[patch] else before


@compiled
def _indicators(rule: Rule, memory: Memory, seen: Seen, raw: npt.NDArray[np.float64]) -> None:
    """X of every patch into `raw` (5, N): Eq. 1, 5 and 6 per patch, and the score it is clustered by."""
    for patch in range(raw.shape[1]):
        f_2d, f_3d = np.float64(seen.norm_2d[patch]), np.float64(seen.norm_3d[patch])  # float() would stay float32
        a_2d, a_3d = np.float64(seen.attention_2d[patch]), np.float64(seen.attention_3d[patch])
        ortho = np.float64(seen.ortho_3d[patch])
        if rule.clamp:
            ortho = min(ortho, a_3d)
        features, attention = f_2d + f_3d, a_2d + a_3d
        raw[0, patch] = f_2d / features if features > 0 else 0.0
        raw[1, patch] = f_3d / features if features > 0 else 0.0
        raw[2, patch] = a_2d / attention if attention > 0 else 0.0
        raw[3, patch] = ortho / attention if attention > 0 else 0.0
        raw[4, patch] = memory.attention[0, patch]
        if not rule.separate:
            raw[4, patch] += memory.attention[1, patch]
        if not rule.has_points:
            raw[2, patch] = memory.attention[0, patch]


@compiled
def _window_means(
    rule: Rule,
    memory: Memory,
    observed: npt.NDArray[np.bool_],
    anew: npt.NDArray[np.bool_],
    raw: npt.NDArray[np.float64],
) -> None:
    """The mean of the last k values instead of Eq. 8 and 9, added from the oldest to the newest."""
    for patch in range(observed.size):
        if not observed[patch]:
            continue
        n = memory.updates[patch]
        length = min(n, rule.k)
        for index in range(5):
            memory.window[(n - 1) % rule.k, index, patch] = raw[index, patch]
            value = 0.0
            for back in range(length, 0, -1):
                value += memory.window[(n - back) % rule.k, index, patch]
            memory.smoothed[index, patch] = raw[index, patch] if anew[patch] else value / length


@compiled
def _attention_factor(memory: Memory, seen: Seen, observed: npt.NDArray[np.bool_]) -> float:
    """Σ held ÷ Σ new of ‖α_2D‖₁ + ‖α_3D‖₁ over the observed patches; 1 if all are, or a sum is 0."""
    complete = True
    for patch in range(observed.size):
        complete = complete and observed[patch]
    if complete:
        return 1.0
    held, new = np.zeros(observed.size), np.zeros(observed.size)
    for patch in range(observed.size):
        held[patch] = memory.attention[0, patch] + memory.attention[1, patch]
        new[patch] = np.float64(seen.attention_2d[patch]) + np.float64(seen.attention_3d[patch])
    held_scale, new_scale = unit_scale(held), unit_scale(new)
    held_sum, new_sum = 0, 0
    for patch in range(observed.size):
        if observed[patch]:
            held_sum += fixed(held[patch], held_scale)
            new_sum += fixed(new[patch], new_scale)
    if held_sum == 0 or new_sum == 0:
        return 1.0
    return unscale(held_sum, 1, held_scale) / unscale(new_sum, 1, new_scale)
