"""Canny edges in integer arithmetic, the same pixels on every machine, and the patches that hold one.

Sobel 3 x 3 with replicated borders, |gx| + |gy| as magnitude, thinning along the gradient's sector (bounds tan 22.5°
and tan 67.5° in 15-bit fixed point), then weak pixels that touch strong ones through 8-neighbours: OpenCV's `Canny`
with its defaults, on its integer grey values. SP-VLA is defined by it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from tracekit.layout import GRID

__all__ = ["edge_patches", "edges", "grey"]

_SHIFT = 15
_TAN_22_5 = 13573  # tan(22.5°)·2¹⁵, rounded


def grey(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(H, W) luma of `image` (H, W, 3) uint8 RGB: 0.299 R + 0.587 G + 0.114 B in 15-bit fixed point, rounded."""
    red, green, blue = (image[..., channel].astype(np.int32) for channel in range(3))
    return ((9798 * red + 19235 * green + 3735 * blue + (1 << 14)) >> 15).astype(np.uint8)


def edges(luma: npt.NDArray[np.uint8], low: int = 100, high: int = 200) -> npt.NDArray[np.bool_]:
    """(H, W) edge pixels of `luma` (H, W) uint8 with hysteresis thresholds `low` < `high` on |gx| + |gy|."""
    gx, gy = _sobel(luma)
    magnitude = np.abs(gx) + np.abs(gy)
    thin = _maxima(magnitude, gx, gy)
    weak = thin & (magnitude > low)
    regions, _ = ndimage.label(weak, structure=np.ones((3, 3), int))
    strong = np.unique(regions[weak & (magnitude > high)])
    return np.isin(regions, strong) & weak


def edge_patches(image: npt.NDArray[np.uint8], low: int = 100, high: int = 200) -> npt.NDArray[np.bool_]:
    """(256,) patches of `image` (H, W, 3) uint8 RGB with an edge pixel: patch row = ⌊16·pixel row / H⌋."""
    found = edges(grey(image), low, high)
    row, column = np.nonzero(found)
    patches = np.zeros((GRID, GRID), np.bool_)
    patches[row * GRID // found.shape[0], column * GRID // found.shape[1]] = True
    return patches.ravel()


def _sobel(luma: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    padded = np.pad(luma.astype(np.int64), 1, mode="edge")
    smooth_rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    smooth_columns = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    return smooth_rows[:, 2:] - smooth_rows[:, :-2], smooth_columns[2:] - smooth_columns[:-2]


def _maxima(
    magnitude: npt.NDArray[np.int64], gx: npt.NDArray[np.int64], gy: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Pixels not smaller than both neighbours along the gradient; outside the image the magnitude is 0.

    Of two equal neighbours the first (left, upper) wins across the axes; on the diagonals both must be smaller.
    """
    height, width = magnitude.shape
    around = np.pad(magnitude, 1)

    def neighbour(down: int, right: int) -> npt.NDArray[np.int64]:
        return around[1 + down : 1 + down + height, 1 + right : 1 + right + width]

    x, y = np.abs(gx), np.abs(gy) << _SHIFT
    flat = x * _TAN_22_5
    steep = flat + (x << (_SHIFT + 1))  # tan 67.5° = tan 22.5° + 2
    across = (magnitude > neighbour(0, -1)) & (magnitude >= neighbour(0, 1))
    along = (magnitude > neighbour(-1, 0)) & (magnitude >= neighbour(1, 0))
    falling = (magnitude > neighbour(-1, -1)) & (magnitude > neighbour(1, 1))
    rising = (magnitude > neighbour(-1, 1)) & (magnitude > neighbour(1, -1))
    diagonal = np.where((gx ^ gy) < 0, rising, falling)
    return np.where(y < flat, across, np.where(y > steep, along, diagonal))
