"""Tokens that differ most: greedy max-min cosine distance, exact on every machine.

Rows are scaled to unit length and rounded to multiples of 2⁻²⁵. Their dot products are then whole numbers below 2⁵¹,
which float64 adds without rounding, so that no order of summation (and no BLAS) can change them.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["most_diverse", "similarities"]


def similarities(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """(n, n) cosines of `rows` (n, D) times 2⁵⁰, as whole numbers; 0 for a row of zeros."""
    bits = (52 - math.ceil(math.log2(max(rows.shape[1], 2)))) // 2  # so that the squares of a row add up exactly
    values = rows.astype(np.float64)
    _, exponents = np.frexp(np.abs(values).max(1, initial=0.0))
    whole = np.trunc(np.ldexp(values, (bits - exponents)[:, None]))
    lengths = np.sqrt((whole * whole).sum(1))
    units = np.rint(whole / np.where(lengths > 0, lengths, 1.0)[:, None] * 2.0**25)
    return np.asarray(units @ units.T, np.float64)


def most_diverse(rows: npt.NDArray[np.float32], candidates: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """`count` of `candidates` (ascending indices of `rows` (n, D)), greedily by the largest distance to those chosen.

    The first is the one farthest from its nearest neighbour; ties by lower index. Returned ascending.
    """
    if len(candidates) <= count:
        return candidates
    close = similarities(rows[candidates])
    np.fill_diagonal(close, -np.inf)
    nearest = close.max(1)
    chosen: list[int] = []
    for _ in range(count):
        pick = int(np.argmin(nearest))
        nearest = close[pick].copy() if not chosen else np.maximum(nearest, close[pick])
        chosen.append(pick)
        nearest[chosen] = np.inf
    return candidates[sorted(chosen)]
