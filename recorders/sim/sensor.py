"""The front RGB-D sensor: MuJoCo's ray caster gives colour, depth and segmentation without any graphics library."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import mujoco
import numpy as np
import numpy.typing as npt

from tracekit.camera import Camera

__all__ = ["FRONT", "SIDE", "Light", "RayCamera", "Reading", "SegmentationClass", "look_at"]

SIDE = 224
"""Pixels per side of the square image."""

_FAR = 1e10
_VISIBLE = np.array([1, 1, 1, 1, 1, 0], np.uint8)
_SHADOW_GAP = 0.004
"""Metres by which an occluder must be nearer to the light than the surface: keeps surfaces from shading themselves."""

_SKY = np.array([0.62, 0.70, 0.78], np.float32)


class SegmentationClass(IntEnum):
    """What a pixel shows."""

    BACKGROUND = 0
    ROBOT = 1
    TARGET = 2
    OTHER = 3


@dataclass(frozen=True, slots=True)
class Light:
    """One lamp at `position` (metres, as in `World`); `strength` of its diffuse part, `ambient` of the sky: 0 ... 1."""

    position: tuple[float, float, float]
    strength: float
    ambient: float


class Reading(NamedTuple):
    """One exposure.

    rgb: (224, 224, 3) uint8. depth: (224, 224) float32 metres along the optical axis, 0 where nothing was hit.
    segmentation: (224, 224) uint8. points: (224, 224, 3) float32 metres, base frame, NaN where nothing was hit.
    """

    rgb: npt.NDArray[np.uint8]
    depth: npt.NDArray[np.float32]
    segmentation: npt.NDArray[np.uint8]
    points: npt.NDArray[np.float32]


def look_at(position: tuple[float, float, float], target: tuple[float, float, float], fovy_degrees: float) -> Camera:
    """Pinhole camera of SIDE x SIDE pixels at `position` (metres) that looks at `target`, upright, with OpenCV axes."""
    eye = np.asarray(position, np.float64)
    forward = np.asarray(target, np.float64) - eye
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right = right / np.linalg.norm(right)
    rows = np.stack([right, np.cross(forward, right), forward], axis=1)
    focal = 0.5 * SIDE / math.tan(math.radians(fovy_degrees) / 2)
    a, b, c = ((float(row[0]), float(row[1]), float(row[2])) for row in rows)
    return Camera(SIDE, SIDE, focal, focal, SIDE / 2, SIDE / 2, rotation=(a, b, c), translation=position)


FRONT = look_at((1.20, 0.0, 0.88), (0.27, 0.0, 0.04), 58.0)
"""The camera of every task: high in front of the arm, looking back at it over the whole working sector."""


class RayCamera:
    """Casts one ray through every pixel centre of `camera` into one compiled scene.

    `classes`: (ngeom,) uint8 segmentation class of every geom. `base`: (3,) origin of the base frame, in which the
    camera is posed and points are told.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        camera: Camera,
        classes: npt.NDArray[np.uint8],
        light: Light,
        base: npt.NDArray[np.float64] | None = None,
    ) -> None:
        self._model, self._classes, self._light = model, classes, light
        self._base = np.zeros(3) if base is None else base
        self._eye = self._base + np.asarray(camera.translation, np.float64)
        columns, rows = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
        rays = np.stack(
            [(columns - camera.cx) / camera.fx, (rows - camera.cy) / camera.fy, np.ones_like(columns)], axis=-1
        ).reshape(-1, 3)
        lengths = np.linalg.norm(rays, axis=1)
        rotation = np.asarray(camera.rotation, np.float64)
        self._rays = np.ascontiguousarray((rays / lengths[:, None]) @ rotation.T)
        self._axial = 1.0 / lengths
        self._shape = (camera.height, camera.width)
        self._colours = model.geom_rgba[:, :3].astype(np.float32)

    def read(self, data: mujoco.MjData) -> Reading:
        """Takes one exposure of `data`, whose body poses must be up to date."""
        geoms, distance, normals = self._cast(data, self._eye, self._rays)
        hit = geoms >= 0
        with np.errstate(invalid="ignore"):
            points = self._eye + self._rays * np.where(hit, distance, np.nan)[:, None]
        rgb = np.tile(_SKY, (len(geoms), 1))
        brightness = self._brightness(data, points[hit], normals[hit], self._rays[hit])
        rgb[hit] = self._colours[geoms[hit]] * brightness[:, None]
        classes = np.where(hit, self._classes[geoms], SegmentationClass.BACKGROUND)
        return Reading(
            rgb=np.rint(np.clip(rgb, 0.0, 1.0) * 255).astype(np.uint8).reshape(*self._shape, 3),
            depth=np.where(hit, distance * self._axial, 0.0).astype(np.float32).reshape(self._shape),
            segmentation=classes.astype(np.uint8).reshape(self._shape),
            points=(points - self._base).astype(np.float32).reshape(*self._shape, 3),
        )

    def _brightness(
        self,
        data: mujoco.MjData,
        points: npt.NDArray[np.float64],
        normals: npt.NDArray[np.float64],
        rays: npt.NDArray[np.float64],
    ) -> npt.NDArray[np.float32]:
        """(N,) share of its colour that each point shows: sky light, a weak head light, the lamp where it reaches."""
        lamp = np.asarray(self._light.position, np.float64)
        towards = lamp - points
        distance = np.linalg.norm(towards, axis=1)
        towards = towards / distance[:, None]
        facing = np.clip((normals * towards).sum(axis=1), 0.0, 1.0)
        _, first, _ = self._cast(data, lamp, np.ascontiguousarray(-towards))
        shadowed = (first > 0) & (first < distance - _SHADOW_GAP)
        sky = 0.75 + 0.25 * normals[:, 2]
        head = np.abs((normals * rays).sum(axis=1))
        shares = self._light.ambient * sky + 0.18 * head + self._light.strength * np.where(shadowed, 0.0, facing)
        return np.asarray(shares, np.float32)

    def _cast(
        self, data: mujoco.MjData, origin: npt.NDArray[np.float64], rays: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """(geom id or -1, distance, surface normal) of the first thing each ray meets."""
        count = len(rays)
        geoms, distance = np.full(count, -1, np.int32), np.full(count, -1.0)
        normals = np.zeros((count, 3))
        flat, flat_normals = rays.reshape(-1), normals.reshape(-1)
        mujoco.mj_multiRay(
            self._model, data, origin, flat, _VISIBLE, True, -1, geoms, distance, flat_normals, count, _FAR
        )
        return geoms, distance, normals
