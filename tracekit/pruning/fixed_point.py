"""Sums whose order cannot matter: values as integers in a power-of-two unit, added in int64.

The unit of a set of values is 2⁻⁵⁰ of the smallest power of two above its largest value, so that 4096 of them add up
without overflow whatever they measure. A float32 value down to 2⁻²⁶ of the largest is represented exactly; what is
smaller than the unit counts as 0. One value of 1e30 therefore hides those below 1e15 beside it; it never overflows.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from tracekit.pruning._compile import compiled

__all__ = ["MAX_TERMS", "fixed", "total", "unit_exponent", "unscale"]

BITS = 50
MAX_TERMS = 4096


@compiled
def unit_exponent(values: npt.NDArray[np.float64]) -> int:
    """The exponent e for which v·2ᵉ of the largest of `values` (n,), all ≥ 0, lies in [2⁴⁹, 2⁵⁰); 0 if all are 0."""
    largest = 0.0
    for value in values:
        largest = max(largest, value)
    return BITS - math.frexp(largest)[1] if largest > 0.0 else 0


@compiled
def fixed(value: float, exponent: int) -> int:
    """⌊value·2^exponent⌋."""
    return np.int64(math.ldexp(value, exponent))


@compiled
def unscale(numerator: int, denominator: int, exponent: int) -> float:
    """The quotient numerator / denominator / 2^exponent in float64, 0 where the denominator is 0; its sign is exact."""
    return math.ldexp(numerator / denominator, -exponent) if denominator else 0.0


@compiled
def total(values: npt.NDArray[np.float64], members: npt.NDArray[np.bool_], exponent: int) -> int:
    """Σ of the fixed-point `values` (n,) where `members` (n,) is true."""
    out = np.int64(0)
    for index in range(values.size):
        if members[index]:
            out += fixed(values[index], exponent)
    return out
