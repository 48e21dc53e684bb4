"""Times of several things on one machine, taken in turns, each held against the limits of the same moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tracekit.bench.costs import Cost
from tracekit.bench.limits import Limits, LimitsProbe, timed_once_ms

__all__ = ["Bound", "Line", "Measured", "Times", "median_limits", "take_turns"]


@dataclass(frozen=True, slots=True)
class Measured:
    """A call to time, what it costs by counting, and the visual tokens in it."""

    run: Callable[[], object]
    cost: Cost
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Times:
    """One entry per round: wall milliseconds, and the limits measured immediately before."""

    milliseconds: tuple[float, ...]
    limits: tuple[Limits, ...]

    def limits_ms(self, cost: Cost) -> tuple[float, ...]:
        """FLOPs/rate + bytes/bandwidth of every round."""
        return tuple(limits.milliseconds(cost.flops, cost.nbytes) for limits in self.limits)


@dataclass(frozen=True, slots=True)
class Line:
    """One measured thing: median and range over the rounds; `limit_ms` = FLOPs/rate + bytes/bandwidth.

    `tokens`: visual tokens in the pruned passes. `nbytes`: weights read once per use, keys and values read and written.
    `efficiency`: limit / measured, both of one round; the median.
    """

    name: str
    median_ms: float
    spread_ms: float
    tokens: int | None
    flops: float
    nbytes: float
    limit_ms: float
    efficiency: float

    @classmethod
    def of(cls, name: str, measured: Measured, times: Times) -> Line:
        """The line of `measured` with its `times`."""
        limits = times.limits_ms(measured.cost)
        ratios = np.divide(limits, times.milliseconds)
        return cls(
            name=name,
            median_ms=float(np.median(times.milliseconds)),
            spread_ms=float(np.ptp(times.milliseconds)),
            tokens=measured.tokens,
            flops=measured.cost.flops,
            nbytes=measured.cost.nbytes,
            limit_ms=float(np.median(limits)),
            efficiency=float(np.median(ratios)),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Bound:
    """A ratio that should not be above `most`: the median of the rounds' own ratios."""

    name: str
    ratio: float
    most: float

    @classmethod
    def between(cls, name: str, ours: tuple[float, ...], theirs: tuple[float, ...], most: float) -> Bound:
        """Of `ours` over `theirs`, milliseconds of the same rounds."""
        return cls(name, float(np.median(np.divide(ours, theirs))), most)

    @property
    def ok(self) -> bool:
        """Whether it holds."""
        return self.ratio <= self.most

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"ok": self.ok}


def take_turns(
    calls: Mapping[str, Measured],
    probe: LimitsProbe,
    device: str,
    rounds: int,
    progress: Callable[[str, int, int], None],
) -> dict[str, Times]:
    """Every call once per round, so that a slow moment hits all alike; the limits again before each."""
    milliseconds: dict[str, list[float]] = {name: [] for name in calls}
    limits: dict[str, list[Limits]] = {name: [] for name in calls}
    for call in calls.values():
        call.run()
    for index in range(rounds):
        for name, call in calls.items():
            limits[name].append(probe())
            milliseconds[name].append(timed_once_ms(call.run, device))
        progress("measuring", index + 1, rounds)
    return {name: Times(tuple(milliseconds[name]), tuple(limits[name])) for name in calls}


def median_limits(times: Mapping[str, Times]) -> Limits:
    """The median rate and bandwidth of everything that was probed."""
    every = [limits for one in times.values() for limits in one.limits]
    return Limits(
        float(np.median([limits.matrix_rate for limits in every])),
        float(np.median([limits.bandwidth for limits in every])),
    )
