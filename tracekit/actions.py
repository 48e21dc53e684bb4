"""What an action means: frame, units, rotation form, pace and gripper are data of the policy, not convention."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tracekit.errors import PolicyError

__all__ = ["ROTATION_SIZES", "ActionSpec", "rotation_matrix"]

Rotation = Literal["rot6d", "euler_xyz", "rotvec"]

ROTATION_SIZES: dict[str, int] = {"rot6d": 6, "euler_xyz": 3, "rotvec": 3}
"""Numbers per rotation form: rot6d = first and third column of the matrix; euler_xyz = extrinsic x, y, z in radians;
rotvec = axis times angle in radians."""


@dataclass(frozen=True, slots=True)
class ActionSpec:
    """An end-effector action [translation(3), rotation, gripper(1)] and the matching proprioceptive state.

    translation: metres in `frame`, an offset from the current tool centre point (`delta`) or a position (`absolute`).
    rotation: form and whether absolute or delta. gripper: opening as a fraction, 0 closed ... 1 open, compared with
    `gripper_threshold`. pace: `key_pose` (the controller interpolates for `seconds`) or `servo` (one command per tick).
    The state is [position(3, metres), rotation in the same form, absolute; gripper(1)].
    """

    frame: str = "base"
    translation: Literal["delta", "absolute"] = "delta"
    rotation_form: Rotation = "rot6d"
    rotation: Literal["delta", "absolute"] = "absolute"
    gripper_threshold: float = 0.5
    pace: Literal["key_pose", "servo"] = "key_pose"
    seconds: float = 0.2

    @property
    def size(self) -> int:
        """Numbers per action (and per state)."""
        return 3 + ROTATION_SIZES[self.rotation_form] + 1

    @property
    def names(self) -> tuple[str, ...]:
        """Name of every dimension, for the attributes of the trace."""
        turns = {
            "rot6d": ("r11", "r21", "r31", "r13", "r23", "r33"),
            "euler_xyz": ("roll", "pitch", "yaw"),
            "rotvec": ("rx", "ry", "rz"),
        }[self.rotation_form]
        return ("x", "y", "z", *turns, "gripper")

    @property
    def units(self) -> tuple[str, ...]:
        """Unit of every dimension."""
        turn = "1" if self.rotation_form == "rot6d" else "rad"
        return ("m",) * 3 + (turn,) * ROTATION_SIZES[self.rotation_form] + ("fraction",)

    def split(
        self, action: npt.NDArray[np.floating[Any]]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], float]:
        """(translation (3,), rotation matrix (3, 3), gripper) of an action (size,); PolicyError on other shapes."""
        values = np.asarray(action, np.float64)
        if values.shape != (self.size,):
            raise PolicyError(
                f"action has shape {values.shape}, the action spec ({self.rotation_form}) needs ({self.size},); "
                "pass one action of one control step"
            )
        return values[:3], rotation_matrix(self.rotation_form, values[3:-1]), float(values[-1])

    def to_json(self) -> dict[str, Any]:
        """Plain values for attributes."""
        return asdict(self)


SHORTEST = 1e-6
"""Length below which a column of rot6d has no direction and a fixed one takes its place."""


def _unit(v: npt.NDArray[np.float64], otherwise: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    length = float(np.linalg.norm(v))
    return v / length if length > SHORTEST else otherwise


def rotation_matrix(form: str, values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """(3, 3) rotation matrix of `values` in `form`; rot6d is orthonormalised by Gram-Schmidt (first column kept).

    Always a rotation: where rot6d's columns are (nearly) zero or parallel, the missing direction is the coordinate axis
    farthest from the first column.
    """
    v = np.asarray(values, np.float64)
    if form == "rot6d":
        x = _unit(v[:3], np.eye(3)[0])
        across = np.eye(3)[int(np.argmin(np.abs(x)))]
        z = _unit(v[3:6] - x * float(x @ v[3:6]), _unit(across - x * float(x @ across), across))
        return np.stack([x, np.cross(z, x), z], axis=1)
    if form == "euler_xyz":
        cx, cy, cz = np.cos(v)
        sx, sy, sz = np.sin(v)
        turn_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
        turn_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        turn_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
        return np.asarray(turn_z @ turn_y @ turn_x)
    angle = float(np.linalg.norm(v))
    if angle < 1e-12:
        return np.eye(3)
    k = v / angle
    cross = np.array([[0, -k[2], k[1]], [k[2], 0, -k[0]], [-k[1], k[0], 0]])
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross))
