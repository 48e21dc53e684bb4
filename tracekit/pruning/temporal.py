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
    raw = np.empty(5)
    for patch in range(observed.size):
        if not observed[patch]:
            continue
        memory.attention[0, patch] = factor * np.float64(seen.attention_2d[patch])
        memory.attention[1, patch] = factor * np.float64(seen.attention_3d[patch])
        memory.points[patch] = seen.points[patch]
        memory.updates[patch] += 1
        _indicators(rule, memory, seen, patch, raw)
        still = moving[patch] and not rule.smooth_moving
        n = memory.updates[patch]
        for index in range(5):
            x = raw[index]
            if n == 1 or not rule.s3 or still:
                memory.smoothed[index, patch] = x
            elif rule.window_mean:
                continue
            elif n < rule.k:
                memory.smoothed[index, patch] = ((n - 1) / n) * memory.smoothed[index, patch] + (1 / n) * x
            else:
                memory.smoothed[index, patch] = rule.beta * memory.smoothed[index, patch] + (1 - rule.beta) * x
        if rule.window_mean and rule.s3:
            _window_mean(rule, memory, patch, raw, still)


@compiled
def _indicators(rule: Rule, memory: Memory, seen: Seen, patch: int, raw: npt.NDArray[np.float64]) -> None:
    """X of one patch into `raw` (5,): Eq. 1, 5 and 6 per patch, and the score it is clustered by."""
    f_2d, f_3d = np.float64(seen.norm_2d[patch]), np.float64(seen.norm_3d[patch])  # float() would stay float32 here
    a_2d, a_3d = np.float64(seen.attention_2d[patch]), np.float64(seen.attention_3d[patch])
    ortho = np.float64(seen.ortho_3d[patch])
    if rule.clamp:
        ortho = min(ortho, a_3d)
    features, attention = f_2d + f_3d, a_2d + a_3d
    raw[0] = f_2d / features if features > 0 else 0.0
    raw[1] = f_3d / features if features > 0 else 0.0
    raw[2] = a_2d / attention if attention > 0 else 0.0
    raw[3] = ortho / attention if attention > 0 else 0.0
    raw[4] = memory.attention[0, patch]
    if not rule.separate:
        raw[4] += memory.attention[1, patch]
    if not rule.has_points:
        raw[2] = memory.attention[0, patch]


@compiled
def _window_mean(rule: Rule, memory: Memory, patch: int, raw: npt.NDArray[np.float64], still: bool) -> None:
    """The mean of the last k values instead of Eq. 8 and 9, added from the oldest to the newest."""
    n = memory.updates[patch]
    for index in range(5):
        memory.window[(n - 1) % rule.k, index, patch] = raw[index]
    if still:
        return
    length = min(n, rule.k)
    for index in range(5):
        value = 0.0
        for back in range(length, 0, -1):
            value += memory.window[(n - back) % rule.k, index, patch]
        memory.smoothed[index, patch] = value / length


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
