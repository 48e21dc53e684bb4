"""What recording cost, site by site, and what was odd about the data: the episode's attributes say it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit.observation import Observation

__all__ = ["Ledger", "SensorClocks"]


class Ledger:
    """Nanoseconds per site and step, and numbers that are not finite, per key."""

    def __init__(self) -> None:
        self._spent: dict[str, list[int]] = {}
        self._nonfinite: Counter[str] = Counter()

    def charge(self, site: str, nanoseconds: int) -> None:
        """One step's cost at `site`."""
        self._spent.setdefault(site, []).append(int(nanoseconds))

    def inspect(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Count NaN and Inf among the observables; they are recorded as they are, and pruners refuse them."""
        for key, values in arrays.items():
            if key.startswith(("observables/", "attention/", "hidden/")) and values.dtype.kind == "f":
                self._nonfinite[key] += values.size - int(np.count_nonzero(np.isfinite(values)))

    def to_json(self) -> dict[str, Any]:
        """`overhead_ns`: site -> sum, median and largest step. `nonfinite`: key -> numbers that are NaN or Inf."""
        overhead = {
            site: {"sum": sum(spent), "median": int(np.median(spent)), "max": max(spent)}
            for site, spent in self._spent.items()
        }
        return {"overhead_ns": overhead, "nonfinite": {key: count for key, count in self._nonfinite.items() if count}}


class SensorClocks:
    """Watches measured time stamps, which are promised to be monotonic: a stamp before the last one is counted."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._backwards: Counter[str] = Counter()

    def see(self, observation: Observation) -> None:
        """The stamps of one observation."""
        for sensor, stamp in observation.time_ns.items():
            if stamp < self._last.get(sensor, stamp):
                self._backwards[sensor] += 1
            self._last[sensor] = int(stamp)

    def to_json(self) -> dict[str, Any]:
        """`clock_went_backwards`: sensor -> how often."""
        return {"clock_went_backwards": dict(self._backwards)}
