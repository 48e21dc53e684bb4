"""Exact one-dimensional k-means: the global optimum over all cuts of the sorted values, compared without rounding.

In one dimension the optimal clusters are intervals. With S and n the sum and size of a cluster, the cost is
Σv² − ΣS²/n, so the best cuts maximise ΣS²/n. The best lower cut never moves left when a prefix grows (the cost is
Monge), which is what the search over halving strides uses; stretches of the upper cut are left out where even a cluster
for each of their values would not do as well as what is known. Values are fixed-point integers (see `fixed_point`),
objectives are compared in float64 where they are clearly apart, and as exact fractions where they are not. So equal
values always share a cluster, equal costs are recognised, and of those the lowest cuts win.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tracekit.pruning._compile import compiled
from tracekit.pruning.fixed_point import MAX_TERMS, fixed, unit_scale, unscale

__all__ = ["Clusters", "kmeans_1d", "partition"]

Integers = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]

_CLEARLY_APART = 2.0**-46
"""Relative difference beyond which two objectives, each within 2⁻⁴⁹ of its true value, cannot be equal."""

_HOPELESS = 1 - 2.0**-20
"""Factor below the best objective at which a bound on others rules them out, whatever rounding did to either."""

_DIGIT = 31
_MASK = (1 << _DIGIT) - 1


@dataclass(frozen=True, slots=True)
class Clusters:
    """`labels`: (n,) int8 rank of each value's cluster, 0 the lowest. `centroids`: (c,) float64, ascending, c ≤ K."""

    labels: npt.NDArray[np.int8]
    centroids: npt.NDArray[np.float64]


def kmeans_1d(values: npt.NDArray[np.floating], clusters: int = 3) -> Clusters:
    """Globally optimal clusters of `values` (n,): as many as there are distinct values, at most `clusters`.

    Values are told apart down to the grain of `fixed_point`, 2⁻⁵⁰ of the power of two above the largest: those that
    agree to that grain are one value, and share a cluster.
    Raises ValueError unless the values are finite and ≥ 0, n ≤ 4096 and `clusters` is 1, 2 or 3.
    """
    given = np.asarray(values, np.float64)
    if given.ndim != 1 or not 1 <= given.size <= MAX_TERMS or not np.isfinite(given).all() or given.min() < 0:
        raise ValueError(f"values of shape {given.shape}: give 1 to {MAX_TERMS} finite numbers that are not negative")
    if not 1 <= clusters <= 3:
        raise ValueError(f"clusters = {clusters}: 1, 2 or 3")
    labels = np.empty(given.size, np.int8)
    centroids = np.zeros(3)
    count = partition(given, clusters, labels, centroids)
    return Clusters(labels, centroids[:count])


@compiled
def partition(
    values: npt.NDArray[np.float64], clusters: int, labels: npt.NDArray[np.int8], centroids: npt.NDArray[np.float64]
) -> int:
    """`kmeans_1d` into given arrays: `labels` (n,) int8 and the first entries of `centroids` (3,); returns how many."""
    scale = unit_scale(values)
    whole = np.empty(values.size, np.int64)
    for index in range(values.size):
        whole[index] = fixed(values[index], scale)
    ordered = np.sort(whole)
    lowest = ordered[0]
    distinct = np.empty(ordered.size, np.int64)
    sums = np.zeros(ordered.size + 1, np.int64)  # of the first so many distinct values, each minus the lowest
    sizes = np.zeros(ordered.size + 1, np.int64)
    count = 0
    for value in ordered:
        if count == 0 or value != distinct[count - 1]:
            distinct[count] = value
            count += 1
            sums[count] = sums[count - 1]
            sizes[count] = sizes[count - 1]
        sums[count] += value - lowest
        sizes[count] += 1
    found = min(clusters, count)
    squares = np.zeros(count + 1)
    for index in range(count):
        value = float(distinct[index] - lowest)
        squares[index + 1] = squares[index] + value * value * (sizes[index + 1] - sizes[index])
    first, second = _cuts(sums[: count + 1], sizes[: count + 1], squares, found)
    for index in range(values.size):
        above_first = first < count and whole[index] >= distinct[first]
        above_second = second < count and whole[index] >= distinct[second]
        labels[index] = int(above_first) + int(above_second)
    edges = (0, first, second, count)
    for cluster in range(found):
        start, stop = edges[cluster], edges[cluster + 1]
        size = sizes[stop] - sizes[start]
        centroids[cluster] = unscale(sums[stop] - sums[start] + size * lowest, size, scale)
    return found


@compiled
def _cuts(sums: Integers, sizes: Integers, squares: Doubles, clusters: int) -> tuple[int, int]:
    """The best (first, second) with clusters [0, first), [first, second), [second, count) of the distinct values.

    `sums`, `sizes`, `squares`: (count + 1,) over the first so many distinct values. With fewer clusters the last ones
    are empty.
    """
    count = sums.size - 1
    if clusters == 1:
        return count, count
    inverse = np.empty(sizes[count] + 1)
    for size in range(1, inverse.size):
        inverse[size] = 1.0 / size
    below = np.zeros(count + 1)  # S²/n of a lower cluster that ends at each cut
    for first in range(1, count):
        below[first] = float(sums[first]) * float(sums[first]) * inverse[sizes[first]]
    if clusters == 2:
        return _best_first(sums, sizes, inverse, below, count, 1, count - 1)[0], count
    lower = np.ones(count + 1, np.int64)  # best first cut of every prefix that is looked at, and what it attains
    attained = np.zeros(count + 1)
    known = np.zeros(count + 1, np.bool_)
    most = 0.0  # the best objective so far
    stride = 1
    while 2 * stride <= count:
        stride *= 2
    while stride:
        for prefix in range(stride, count, 2 * stride):
            start, stop = prefix - stride, min(prefix + stride, count)
            if prefix < 2 or _at_most(sums, sizes, squares, inverse, attained[start], start, stop) < most * _HOPELESS:
                continue
            low = lower[start] if known[start] else 1
            high = lower[stop] if known[stop] else prefix - 1
            lower[prefix], attained[prefix] = _best_first(
                sums, sizes, inverse, below, prefix, low, min(high, prefix - 1)
            )
            known[prefix] = True
            rest = float(sums[count] - sums[prefix])
            most = max(most, attained[prefix] + rest * rest * inverse[sizes[count] - sizes[prefix]])
        stride //= 2
    best, at_least, clearly = 2, -1.0, -1.0
    for second in range(2, count):
        if not known[second]:
            continue
        rest = float(sums[count] - sums[second])
        value = attained[second] + rest * rest * inverse[sizes[count] - sizes[second]]
        if value >= at_least and (
            value > clearly or _exactly_greater(sums, sizes, count, lower[second], second, lower[best], best)
        ):
            best, at_least, clearly = second, value * (1 - _CLEARLY_APART), value * (1 + _CLEARLY_APART)
    return lower[best], best


@compiled
def _at_most(
    sums: Integers, sizes: Integers, squares: Doubles, inverse: Doubles, attained: float, start: int, stop: int
) -> float:
    """No second cut between `start` and `stop` has a greater objective: theirs if all values between were clusters."""
    count = sums.size - 1
    rest = float(sums[count] - sums[stop])
    return float(attained + (squares[stop] - squares[start]) + rest * rest * inverse[sizes[count] - sizes[stop]])


@compiled
def _best_first(
    sums: Integers, sizes: Integers, inverse: Doubles, below: Doubles, prefix: int, low: int, high: int
) -> tuple[int, float]:
    """The lowest best cut in low ... high of the first `prefix` distinct values into two clusters, and its ΣS²/n."""
    best, best_value, at_least, clearly = low, 0.0, -1.0, -1.0
    for first in range(low, high + 1):
        above = float(sums[prefix] - sums[first])
        value = below[first] + above * above * inverse[sizes[prefix] - sizes[first]]
        if value >= at_least and (
            value > clearly or _exactly_greater(sums, sizes, prefix, first, prefix, best, prefix)
        ):
            best, best_value = first, value
            at_least, clearly = value * (1 - _CLEARLY_APART), value * (1 + _CLEARLY_APART)
    return best, best_value


@compiled
def _exactly_greater(sums: Integers, sizes: Integers, stop: int, i: int, j: int, i_best: int, j_best: int) -> bool:
    digits, part, parts = _exact_objective(sums, sizes, stop, i, j)
    best_digits, best_part, best_parts = _exact_objective(sums, sizes, stop, i_best, j_best)
    for index in range(digits.size - 1, -1, -1):
        if digits[index] != best_digits[index]:
            return bool(digits[index] > best_digits[index])
    return bool(part * best_parts > best_part * parts)  # below 2⁶³: parts ≤ (4096/3)³ < 2³²


@compiled
def _exact_objective(sums: Integers, sizes: Integers, stop: int, i: int, j: int) -> tuple[Integers, int, int]:
    """ΣS²/n = whole + part/parts: `whole` in base-2³¹ digits, lowest first, part < parts = the product of the sizes."""
    edges = (0, i, j, stop)
    digits = np.zeros(6, np.int64)
    part, parts = 0, 1
    for cluster in range(3):
        start, end = edges[cluster], edges[cluster + 1]
        size = sizes[end] - sizes[start]
        if size == 0:
            continue
        high, low = (sums[end] - sums[start]) >> _DIGIT, (sums[end] - sums[start]) & _MASK
        square = np.zeros(4, np.int64)
        square[0] = low * low & _MASK
        cross = (low * low >> _DIGIT) + (high * low & _MASK) * 2
        square[1] = cross & _MASK
        upper = high * high + (high * low >> _DIGIT) * 2 + (cross >> _DIGIT)
        square[2] = upper & _MASK
        square[3] = upper >> _DIGIT
        remainder = 0
        for index in range(3, -1, -1):
            chunk = (remainder << _DIGIT) | square[index]
            digits[index] += chunk // size
            remainder = chunk % size
        part = int(part * size + remainder * parts)
        parts = int(parts * size)
    digits[0] += part // parts
    for index in range(digits.size - 1):
        digits[index + 1] += digits[index] >> _DIGIT
        digits[index] &= _MASK
    return digits, part % parts, parts
