"""Small pieces of rigid-body geometry that arm, scene and experts share. Metres, radians, right-handed axes."""

from __future__ import annotations

import math
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

__all__ = [
    "Vector",
    "cylindrical_step",
    "frame_from",
    "heading",
    "quaternion_z",
    "rotated",
    "rotation_between",
    "rotation_values",
]

Vector = npt.NDArray[np.float64]
"""Float64 array; (3,) for points and directions, (3, 3) for rotations whose columns are the frame's axes."""


def heading(angle: float) -> Vector:
    """(3,) horizontal unit vector at `angle` radians from the x axis."""
    return np.array([math.cos(angle), math.sin(angle), 0.0])


def quaternion_z(angle: float) -> list[float]:
    """[w, x, y, z] of a turn by `angle` radians about z."""
    return [math.cos(angle / 2), 0.0, 0.0, math.sin(angle / 2)]


def frame_from(forward: npt.NDArray[np.floating[Any]], side: npt.NDArray[np.floating[Any]]) -> Vector:
    """(3, 3) tool frame: z along `forward`, y (the travel of the jaws) as near to `side` as that allows."""
    z = forward / np.linalg.norm(forward)
    y = side - z * (z @ side)
    y = y / np.linalg.norm(y)
    return np.stack([np.cross(y, z), y, z], axis=1)


def rotation_between(start: Vector, goal: Vector) -> Vector:
    """(3,) rotation vector, in the base frame, that turns the frame `start` (3, 3) into `goal` (3, 3)."""
    quaternion, turn = np.empty(4), np.empty(3)
    mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(goal @ start.T).reshape(-1))
    mujoco.mju_quat2Vel(turn, quaternion, 1.0)
    return turn


def rotation_values(form: str, rotation: Vector) -> Vector:
    """`rotation` (3, 3) in one of the forms of `ActionSpec`: the inverse of `tracekit.actions.rotation_matrix`."""
    if form == "rot6d":
        return np.concatenate([rotation[:, 0], rotation[:, 2]])
    turn = Rotation.from_matrix(rotation)
    return np.asarray(turn.as_rotvec() if form == "rotvec" else turn.as_euler("xyz"))


def rotated(frame: Vector, turn: Vector) -> Vector:
    """`frame` (3, 3) turned by the rotation vector `turn` (3,) of the base frame."""
    angle = float(np.linalg.norm(turn))
    if angle < 1e-12:
        return frame
    quaternion, matrix = np.empty(4), np.empty(9)
    mujoco.mju_axisAngle2Quat(quaternion, turn / angle, angle)
    mujoco.mju_quat2Mat(matrix, quaternion)
    return np.asarray(matrix.reshape(3, 3) @ frame)


def cylindrical_step(start: Vector, goal: Vector, longest: float) -> Vector:
    """(3,) point at most `longest` metres on the way from `start` to `goal`, moving on an arc about the base's z axis.

    An arm on a turning base keeps its reach while it swings; a straight line across the sector would pull the elbow in.
    """
    radius, target_radius = float(np.hypot(start[0], start[1])), float(np.hypot(goal[0], goal[1]))
    azimuth = math.atan2(start[1], start[0])
    swing = (math.atan2(goal[1], goal[0]) - azimuth + math.pi) % (2 * math.pi) - math.pi
    reach, rise = target_radius - radius, float(goal[2] - start[2])
    length = math.sqrt((swing * max(radius, target_radius)) ** 2 + reach**2 + rise**2)
    share = min(1.0, longest / length) if length > 0 else 1.0
    if share == 1.0:
        return goal.copy()
    point = heading(azimuth + share * swing) * (radius + share * reach)
    point[2] = start[2] + share * rise
    return point
