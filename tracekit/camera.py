"""Pinhole cameras and the projection of world points onto the 16 x 16 patch raster of a view."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit.layout import GRID

__all__ = ["Camera"]

TOWER = 672
"""Side in pixels of the square image that the image tokenizer sees; a patch is TOWER / GRID = 42 pixels wide."""


@dataclass(frozen=True, slots=True)
class Camera:
    """A pinhole camera: cam = (X - translation) @ rotation, u = fx·x/z + cx, v = fy·y/z + cy, in pixels.

    `rotation`: 3 x 3 rows, camera axes as columns in world coordinates (x right, y down, z forward when fx, fy > 0);
    `translation`: camera centre in world coordinates, metres. `epsilon` is added to z before the division (the public
    MLA release divides by z + 1e-6).
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    rotation: tuple[tuple[float, float, float], ...]
    translation: tuple[float, float, float]
    epsilon: float = 0.0

    def raster(self, points: npt.NDArray[np.floating[Any]]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Row and column ((N, 2), clamped to the raster) of world `points` ((N, 3), metres), and whether each is seen.

        The image is stretched to 672 x 672; row and column are floors of v/42 and u/42; a point is seen iff z > 0 and
        0 <= u, v < 672. Float32 arithmetic, as the release computes it.
        """
        rotation = np.asarray(self.rotation, np.float32)
        cam = (np.asarray(points, np.float32) - np.asarray(self.translation, np.float32)) @ rotation
        z = cam[:, 2] + np.float32(self.epsilon)
        with np.errstate(divide="ignore", invalid="ignore"):
            u = (np.float32(self.fx) * cam[:, 0] / z + np.float32(self.cx)) * np.float32(TOWER / self.width)
            v = (np.float32(self.fy) * cam[:, 1] / z + np.float32(self.cy)) * np.float32(TOWER / self.height)
            seen = (cam[:, 2] > 0) & (u >= 0) & (u < TOWER) & (v >= 0) & (v < TOWER)
        pixels = np.clip(np.nan_to_num(np.stack([v, u], axis=1)), 0, TOWER - 1)
        return np.floor(pixels / (TOWER // GRID)).astype(np.int32), seen

    def patches(self, points: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.int32]:
        """(N,) patches 16·row + column of world `points` ((N, 3), metres), -1 where a point is not seen."""
        cell, seen = self.raster(points)
        return np.where(seen, cell[:, 0] * GRID + cell[:, 1], -1).astype(np.int32)

    def to_json(self) -> dict[str, Any]:
        """Plain values for attributes."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Camera:
        """Inverse of `to_json`."""
        rotation = tuple((float(a), float(b), float(c)) for a, b, c in data["rotation"])
        x, y, z = (float(value) for value in data["translation"])
        rest = {key: data[key] for key in ("width", "height", "fx", "fy", "cx", "cy", "epsilon")}
        return cls(**rest, rotation=rotation, translation=(x, y, z))
