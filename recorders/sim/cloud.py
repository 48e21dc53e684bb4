"""The point cloud a policy sees: a fixed number of the depth sensor's points in the working space, without colour."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recorders.sim.tasks.base import MOUNTS
from tracekit.errors import TraceError

__all__ = ["CROP_HIGH", "CROP_LOW", "POINTS", "sample_cloud"]

POINTS = 1024

CROP_LOW = (0.0, -0.75, -MOUNTS[1] - 0.005)
"""Lower corner of the working space in metres, base frame: the table top is inside at any height, the floor is not."""

CROP_HIGH = (0.85, 0.75, 0.60)


def sample_cloud(points: npt.NDArray[np.float32], episode_uid: int, step: int) -> npt.NDArray[np.float32]:
    """(1024, 3) float32 points, metres, base frame, drawn without replacement from the sensor's `points` ((..., 3)).

    Every sensor point in the working space gets a 64-bit number of Philox keyed by `episode_uid` and counted by
    `step`; the 1024 lowest are taken, in that order, so the draw depends on nothing else. A scene with fewer points
    repeats them in turn; one with none raises TraceError.
    """
    flat = points.reshape(-1, 3)
    low, high = np.array(CROP_LOW, np.float32), np.array(CROP_HIGH, np.float32)
    with np.errstate(invalid="ignore"):
        inside = np.flatnonzero(((flat > low) & (flat < high)).all(axis=1))
    if inside.size == 0:
        raise TraceError("the depth sensor sees no point inside the working space; check the camera and the crop")
    draws = np.random.Philox(key=episode_uid, counter=[0, 0, 0, step]).random_raw(inside.size)
    order = np.argsort(draws, kind="stable")[:POINTS]
    return np.ascontiguousarray(np.resize(flat[inside[order]], (POINTS, 3)))
