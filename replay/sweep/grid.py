"""A grid: which configurations a sweep tries. They are built one at a time, by number: a large grid takes no memory."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from tracekit._fields import plain
from tracekit.config import LONGEST_NAME, Configuration
from tracekit.digest import digest_json
from tracekit.errors import ConfigError

__all__ = ["Axis", "Grid", "Kind", "Range"]

Kind = Literal["cartesian", "one_at_a_time", "random", "listed"]


LARGEST_BOUND = 1e15
"""Beyond it, neighbouring integers are no longer different doubles."""

MOST_VALUES = 100_000
MOST_CONFIGURATIONS = 10_000_000
"""Of one axis and of one grid: what is larger is a slip of the finger, or a question for a random grid."""


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers between `low` and `high`: `count` evenly spaced ones, or, in a random grid, drawn uniformly.

    `log`: evenly spaced or uniform in the logarithm. Integers where both ends are.
    """

    low: int | float
    high: int | float
    count: int = 0
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or max(abs(self.low), abs(self.high)) > LARGEST_BOUND:
            raise ConfigError(
                f"low = {self.low}, high = {self.high}: low must lie below high, and both within ±{LARGEST_BOUND:.0e}"
            )
        if self.count > MOST_VALUES:
            raise ConfigError(f"count = {self.count}: at most {MOST_VALUES} values between low and high")
        if self.log and self.low <= 0:
            raise ConfigError(f"low = {self.low}: a logarithmic range starts above 0")

    def at(self, share: float) -> float | int:
        """The value at `share` of the way, in [0, 1]."""
        if isinstance(self.low, int) and isinstance(self.high, int) and not self.log:
            return min(self.high, self.low + math.floor(share * (self.high - self.low + 1)))
        linear, ratio = self.low + (self.high - self.low) * share, self.high / self.low if self.log else 1.0
        value = min(max(self.low * ratio**share if self.log else linear, self.low), self.high)
        return round(value) if isinstance(self.low, int) and isinstance(self.high, int) else float(value)

    def values(self) -> tuple[float | int, ...]:
        """The evenly spaced values, each once."""
        if isinstance(self.low, int) and isinstance(self.high, int) and not self.log:
            spaced: list[float | int] = [
                round(value) for value in np.linspace(self.low, self.high, self.count).tolist()
            ]
        else:
            spaced = [self.at(index / (self.count - 1)) for index in range(self.count)]
        return tuple(dict.fromkeys(spaced))


Axis = tuple[Any, ...] | Range


@dataclass(frozen=True)
class Grid:
    """Configurations by number, 0 ... len - 1.

    `base`: the resolved configuration as tables. `axes`: dotted key -> its values. `cartesian`: all combinations, the
    last axis fastest. `one_at_a_time`: the base, then every value of each axis with the others at the base's. `random`:
    `count` draws, each keyed by `seed` and its number alone. `listed`: `listed`, as they stand. `skip_invalid`:
    combinations that a configuration refuses are left out and counted instead of refused.
    """

    name: str
    kind: Kind
    base: Mapping[str, Any] = field(default_factory=dict)
    axes: Mapping[str, Axis] = field(default_factory=dict)
    count: int = 0
    seed: int = 0
    listed: tuple[Mapping[str, Any], ...] = ()
    skip_invalid: bool = False
    where: str = "grid"

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed = {self.seed}: give a non-negative integer")
        if self.count > MOST_CONFIGURATIONS or self._size > MOST_CONFIGURATIONS:
            raise ConfigError(
                f"{max(self.count, self._size)} configurations: a grid has at most {MOST_CONFIGURATIONS}; draw some of "
                'them with kind = "random"'
            )
        names = Counter(str(table["name"]) for table in self.listed if "name" in table)
        twice = [name for name, times in names.items() if times > 1]
        if twice:
            raise ConfigError(f"configurations: {min(twice)!r} is there twice; give every one another name")

    def __len__(self) -> int:
        return self._size

    @cached_property
    def _size(self) -> int:
        if self.kind == "listed":
            return len(self.listed)
        if self.kind == "random":
            return self.count
        sizes = [len(values) for values in self._values]
        return math.prod(sizes) if self.kind == "cartesian" else 1 + sum(sizes)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of everything that says which configurations there are, and of their names."""
        return digest_json({**plain(replace(self, where="")), "axes": plain(list(self.axes.items()))})

    @cached_property
    def _values(self) -> list[tuple[Any, ...]]:
        return [values if isinstance(values, tuple) else values.values() for values in self.axes.values()]

    def point(self, index: int) -> dict[str, Any]:
        """Dotted key -> value of configuration `index`, for the axes that it changes."""
        keys, values = list(self.axes), self._values if self.kind in {"cartesian", "one_at_a_time"} else []
        if self.kind == "listed":
            return {}
        if self.kind == "random":
            draws = np.random.default_rng([self.seed, index]).random(len(keys))
            return {key: _drawn(self.axes[key], share) for key, share in zip(keys, draws.tolist(), strict=True)}
        if self.kind == "cartesian":
            places = []
            for own in reversed(values):
                index, place = divmod(index, len(own))
                places.append(own[place])
            return dict(zip(keys, reversed(places), strict=True))
        index -= 1
        for key, own in zip(keys, values, strict=True):
            if 0 <= index < len(own):
                return {key: own[index]}
            index -= len(own)
        return {}

    def configuration(self, index: int) -> Configuration | None:
        """Configuration `index`, named after its point; None for one that is left out as invalid.

        Raises ConfigError, naming the point, for one that cannot be used.
        """
        if self.kind == "listed":
            return Configuration.from_table(self.listed[index], f"{self.where}, configuration {index + 1}")
        point = self.point(index)
        name = self._name(index, point)
        table = copy.deepcopy(dict(self.base))
        for key, value in point.items():
            _set(table, key, value)
        try:
            return Configuration.from_table({**table, "name": name}, f"{self.where}, {name}")
        except ConfigError:
            if self.skip_invalid:
                return None
            raise

    def configurations(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, Configuration]]:
        """(number, configuration) of numbers start ... stop - 1, those left out as invalid skipped."""
        for index in range(start, len(self) if stop is None else stop):
            config = self.configuration(index)
            if config is not None:
                yield index, config

    def _name(self, index: int, point: Mapping[str, Any]) -> str:
        if not point:
            return str(self.base["name"])
        short = [key.rpartition(".")[2] for key in self.axes]
        labels = {key: key if short.count(last) > 1 else last for key, last in zip(self.axes, short, strict=True)}
        name = " ".join(f"{labels[key]}={_shown(value)}" for key, value in point.items())
        name = f"#{index} {name}" if self.kind == "random" else name
        return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 13]} {digest_json(name)[:12]}"


def _set(table: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        table = table[part]
    table[last] = value


def _drawn(axis: Axis, share: float) -> Any:
    if isinstance(axis, Range):
        return axis.at(share)
    return axis[min(int(share * len(axis)), len(axis) - 1)]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
