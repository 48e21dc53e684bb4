"""Where every token of the sequence stands, and which point token belongs to which image patch.

A `TokenLayout` names half-open spans of the full sequence (prefix and tail) as the policy feeds it, unpruned. Whatever
addresses tokens (capture, pruning, the engine) goes through span names, never through literal offsets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit.errors import PolicyError

__all__ = ["GRID", "PATCHES_PER_VIEW", "PatchAlignment", "Span", "TokenLayout"]

GRID = 16
"""Image patches per side of a view: a view is a GRID x GRID raster, row-major."""

PATCHES_PER_VIEW = GRID * GRID

QUERY_GROUPS = {"text": "text", "state": "proprio", "action": "action"}
"""Query group of the capture -> the span whose rows form it (BOS, timestep and tail belong to none)."""


@dataclass(frozen=True, slots=True)
class Span:
    """A named half-open range [start, stop) of sequence positions."""

    name: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def slice(self) -> slice:
        """The span as an index into the sequence axis."""
        return slice(self.start, self.stop)


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """The sequence of one control step, unpruned.

    `spans` tile 0...length without gaps, in order. Names with a meaning: `bos`, `point`, `image.<view>` (front first),
    `text`, `proprio`, `timestep`, `action`, `tail`; others (`tactile`) are always kept and never looked at.
    The prefix (`bos` ... `proprio`) depends on the observation alone, the tail (`timestep` ...) on the denoise pass.
    """

    spans: tuple[Span, ...]

    def __post_init__(self) -> None:
        position = 0
        for span in self.spans:
            if span.start != position or span.stop < span.start:
                raise PolicyError(
                    f"token layout: span {span.name!r} is [{span.start}, {span.stop}) but the previous one ends at "
                    f"{position}; spans must tile the sequence in order"
                )
            position = span.stop
        names = [span.name for span in self.spans]
        if len(set(names)) != len(names):
            raise PolicyError(f"token layout: span names are not unique: {names}; name each span once")

    @classmethod
    def of_lengths(cls, *lengths: tuple[str, int]) -> TokenLayout:
        """Build a layout from (name, length) pairs in sequence order."""
        spans: list[Span] = []
        position = 0
        for name, length in lengths:
            spans.append(Span(name, position, position + length))
            position += length
        return cls(tuple(spans))

    @property
    def length(self) -> int:
        """Number of positions of the whole sequence."""
        return self.spans[-1].stop if self.spans else 0

    def find(self, name: str) -> Span | None:
        """The span called `name`, or None."""
        return next((span for span in self.spans if span.name == name), None)

    def span(self, name: str) -> Span:
        """The span called `name`; raises PolicyError if there is none."""
        found = self.find(name)
        if found is None:
            known = ", ".join(span.name for span in self.spans)
            raise PolicyError(f"token layout has no span {name!r}; it has: {known}")
        return found

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the image views, in sequence order."""
        return tuple(span.name.removeprefix("image.") for span in self.spans if span.name.startswith("image."))

    @property
    def image_positions(self) -> npt.NDArray[np.int64]:
        """(256·V,) positions of all image tokens, view after view: index = 256·view + 16·row + column."""
        parts = [np.arange(s.start, s.stop) for s in self.spans if s.name.startswith("image.")]
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)

    @property
    def point_positions(self) -> npt.NDArray[np.int64]:
        """(N_3D,) positions of the point tokens; empty for a policy without points."""
        span = self.find("point")
        return np.arange(span.start, span.stop, dtype=np.int64) if span else np.zeros(0, np.int64)

    @property
    def visual_positions(self) -> npt.NDArray[np.int64]:
        """(N_2D + N_3D,) positions of the visual tokens: all image tokens, then all point tokens."""
        return np.concatenate([self.image_positions, self.point_positions])

    @property
    def prefix_length(self) -> int:
        """Number of leading positions that do not depend on the denoise pass."""
        return self.span("timestep").start if self.find("timestep") else self.span("action").start

    def group_positions(self, group: str) -> npt.NDArray[np.int64]:
        """Positions of the rows of query group `text`, `state` or `action` (empty if the policy has none)."""
        span = self.find(QUERY_GROUPS[group])
        return np.arange(span.start, span.stop, dtype=np.int64) if span else np.zeros(0, np.int64)

    def to_json(self) -> list[list[Any]]:
        """Plain [name, start, stop] rows for attributes."""
        return [[s.name, s.start, s.stop] for s in self.spans]

    @classmethod
    def from_json(cls, rows: list[list[Any]]) -> TokenLayout:
        """Inverse of `to_json`."""
        return cls(tuple(Span(str(n), int(a), int(b)) for n, a, b in rows))


@dataclass(frozen=True, slots=True)
class PatchAlignment:
    """Which image patch each point token falls into, for one denoise pass.

    `patch`: (N_3D,) int32, 256·view + 16·row + column, or -1 for a point that no view's camera sees. `nearest`: the
    same with each such point given to the patch whose centre ray passes nearest, where that was asked for.
    """

    patch: npt.NDArray[np.int32]
    nearest: npt.NDArray[np.int32] | None = None

    @property
    def followed(self) -> npt.NDArray[np.int32]:
        """The patch that decides whether a point token stays: `nearest` if it was asked for."""
        return self.patch if self.nearest is None else self.nearest

    def counts(self, patches: int) -> npt.NDArray[np.int32]:
        """(patches,) number of point tokens in every patch."""
        return np.bincount(self.patch[self.patch >= 0], minlength=patches).astype(np.int32)
