"""The named colours that instructions speak of: hues far enough apart to stay apart under any light the scenes draw."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np

__all__ = ["PALETTE", "draw_colours", "shade"]

PALETTE = MappingProxyType(
    {
        "blue": (0.12, 0.25, 0.85),
        "cyan": (0.10, 0.72, 0.78),
        "green": (0.13, 0.62, 0.17),
        "purple": (0.52, 0.16, 0.66),
        "red": (0.82, 0.10, 0.10),
        "yellow": (0.93, 0.80, 0.12),
    }
)
"""Name -> RGB in 0 ... 1 of a surface under full light."""


def draw_colours(rng: np.random.Generator, count: int, without: tuple[str, ...] = ()) -> tuple[str, ...]:
    """`count` different colour names, none of them in `without`."""
    names = [name for name in sorted(PALETTE) if name not in without]
    return tuple(names[index] for index in rng.permutation(len(names))[:count])


def shade(name: str, brightness: float = 1.0) -> tuple[float, float, float, float]:
    """RGBA of a palette colour, darkened by `brightness` for the second part of an object (a lid, a rim)."""
    red, green, blue = PALETTE[name]
    return (red * brightness, green * brightness, blue * brightness, 1.0)
