"""Sums whose order cannot matter: values as integers in a power-of-two unit, added in int64.

The unit of a set of values is 2⁻⁵⁰ of the smallest power of two above its largest value, so that 4096 of them add up
without overflow whatever they measure. A float32 value down to 2⁻²⁶ of the largest is represented exactly; what is
smaller than the unit, or than 2⁻¹⁰⁰⁰, counts as 0. One value of 1e30 therefore hides those below 1e15 beside it; it
never overflows.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from tracekit.pruning._compile import compiled

__all__ = ["MAX_TERMS", "fixed", "unit_scale", "unscale"]

BITS = 50
MAX_TERMS = 4096
_LARGEST_EXPONENT = 1000


@compiled
def unit_scale(values: npt.NDArray[np.float64]) -> float:
    """The power of two that takes the largest of `values` (n,), all ≥ 0, into [2⁴⁹, 2⁵⁰); 1 if all are 0."""
    largest = 0.0
    for value in values:
        largest = max(largest, value)
    if largest == 0.0:
        return 1.0
    return math.ldexp(1.0, min(BITS - math.frexp(largest)[1], _LARGEST_EXPONENT))


@compiled
def fixed(value: float, scale: float) -> int:
    """⌊value·scale⌋; the product with a power of two is exact."""
    return int(value * scale)


@compiled
def unscale(numerator: int, denominator: int, scale: float) -> float:
    """The quotient numerator / denominator in the values' own unit, in float64; the sign is exact."""
    return float(numerator) / float(denominator) / scale  # each rounded on its own, in any language
