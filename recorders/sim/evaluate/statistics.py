"""Intervals for success rates, and for the difference of two of them on the same seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest, norm

from tracekit.errors import ConfigError

__all__ = ["PairedDifference", "paired_difference", "wilson_interval"]


def wilson_interval(successes: int, episodes: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of the rate `successes` / `episodes`; raises ConfigError without an episode."""
    if episodes < 1:
        raise ConfigError("a success rate needs at least one episode; give --episodes 1 or more")
    interval = binomtest(successes, episodes).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """`rate`: success rate here minus there; `gained`, `lost`: episodes that only this or only that solved."""

    rate: float
    interval: tuple[float, float]
    gained: int
    lost: int


def paired_difference(here: Sequence[bool], there: Sequence[bool], confidence: float = 0.95) -> PairedDifference:
    """Difference of two success rates over the same episodes, in the same order.

    The interval is Agresti and Min's (2005) for matched pairs: Wald's after half an episode is added to each of the
    four cells, cut off at ±1. Raises ConfigError where the episodes do not pair.
    """
    if len(here) != len(there) or not here:
        raise ConfigError(f"{len(here)} and {len(there)} episodes do not pair; evaluate both on the same seeds")
    gained = sum(a and not b for a, b in zip(here, there, strict=True))
    lost = sum(b and not a for a, b in zip(here, there, strict=True))
    total = len(here) + 2
    change = gained - lost
    error = math.sqrt((gained + lost + 1) - change**2 / total) / total
    reach = float(norm.ppf(0.5 + confidence / 2)) * error
    low, high = max(-1.0, change / total - reach), min(1.0, change / total + reach)
    return PairedDifference(change / len(here), (low, high), gained, lost)
