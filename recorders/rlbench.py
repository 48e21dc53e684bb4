"""RLBench as the MLA release drives it: its observations as policy inputs, the policy's actions as its actions.

Functions over plain attributes and arrays; RLBench itself is not imported, so any object with these attributes will do.
Everything is in RLBench's world frame, in metres; quaternions are (x, y, z, w) as RLBench has them.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from tracekit.actions import ActionSpec
from tracekit.errors import PolicyError
from tracekit.model.cameras import CAMERAS
from tracekit.observation import Observation

__all__ = [
    "ACTION_SPEC",
    "CROP_HIGH",
    "CROP_LOW",
    "MAX_STEPS",
    "POINTS",
    "RLBenchObservation",
    "environment_action",
    "initial_state",
    "policy_input",
    "state_after",
]

ACTION_SPEC = ActionSpec(frame="world", translation="delta", rotation_form="euler_xyz", rotation="absolute")
"""[Δx, Δy, Δz, roll, pitch, yaw, gripper]: an offset from the gripper's place, an absolute turn, 1 open."""

CROP_LOW = (-1.5, -1.5, 0.76)
"""Lower corner of the working space: the table top is cut away."""

CROP_HIGH = (1.5, 1.5, 3.0)
POINTS = 1024
SIDE = 224
MAX_STEPS = 10
"""Key poses per episode at most, as the release evaluates."""


class RLBenchObservation(Protocol):
    """The attributes of `rlbench.backend.observation.Observation` that are read.

    `front_rgb` (224, 224, 3) uint8; `front_point_cloud` (224, 224, 3) float metres, one point per pixel;
    `gripper_pose` (7,) position and quaternion; `gripper_open` 0 or 1.
    """

    front_rgb: Any
    front_point_cloud: Any
    gripper_pose: Any
    gripper_open: Any


def policy_input(
    observation: RLBenchObservation,
    instruction: str,
    state: npt.NDArray[np.float64],
    random: np.random.Generator,
) -> Observation:
    """What the policy sees: the front view, 1024 points of it inside the working space, `state`, `instruction`.

    `state` (7,): `initial_state` at first, then `state_after` the action before. `random` draws the points, without
    replacement; a scene with fewer repeats them in turn. Raises PolicyError (one line) for other shapes or no point.
    """
    image = np.asarray(observation.front_rgb)
    if image.shape != (SIDE, SIDE, 3) or image.dtype != np.uint8:
        raise PolicyError(
            f"front_rgb is {image.dtype}{image.shape}; set the front camera of RLBench to ({SIDE}, {SIDE}) and rgb on"
        )
    if np.shape(state) != (ACTION_SPEC.size,):
        raise PolicyError(f"state has shape {np.shape(state)}; give the (7,) of initial_state or state_after")
    if observation.front_point_cloud is None:
        raise PolicyError("the observation has no front_point_cloud; switch it on in RLBench's camera configuration")
    return Observation(
        images={"front": np.ascontiguousarray(image)},
        points=_cropped(np.asarray(observation.front_point_cloud, np.float32), random),
        state=np.asarray(state, np.float64),
        instruction=instruction,
        cameras={"front": CAMERAS["rlbench_front"]},
    )


def initial_state(observation: RLBenchObservation) -> npt.NDArray[np.float64]:
    """(7,) state before the first action: where the gripper is, [x, y, z, roll, pitch, yaw, open]."""
    pose = _pose(observation)
    turn = Rotation.from_quat(pose[3:]).as_euler("xyz")
    return np.concatenate([pose[:3], turn, [float(observation.gripper_open)]])


def state_after(observation: RLBenchObservation, action: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """(7,) state that follows `action` (7,), taken on `observation`: the absolute pose that the action asks for.

    The release feeds its own last target back and not what the arm reached.
    """
    offset, _, gripper = ACTION_SPEC.split(action)
    turn = np.asarray(action, np.float64)[3:6]
    return np.concatenate([_pose(observation)[:3] + offset, turn, [gripper]])


def environment_action(
    observation: RLBenchObservation, action: npt.NDArray[np.floating[Any]]
) -> npt.NDArray[np.float64]:
    """(8,) action of RLBench's `EndEffectorPoseViaPlanning` with `Discrete` gripper: position, quaternion, 0 or 1.

    `action` (7,) is the policy's, taken on `observation`: the offset is added to the gripper's present place.
    """
    offset, rotation, gripper = ACTION_SPEC.split(action)
    opened = float(gripper >= ACTION_SPEC.gripper_threshold)
    return np.concatenate([_pose(observation)[:3] + offset, Rotation.from_matrix(rotation).as_quat(), [opened]])


def _pose(observation: RLBenchObservation) -> npt.NDArray[np.float64]:
    pose = np.asarray(observation.gripper_pose, np.float64)
    if pose.shape != (7,) or not np.isfinite(pose).all() or not np.isclose(np.linalg.norm(pose[3:]), 1, atol=1e-3):
        raise PolicyError(
            f"gripper_pose is {pose.tolist()}; seven numbers with a unit quaternion (x, y, z, w) are needed"
        )
    return pose


def _cropped(cloud: npt.NDArray[np.float32], random: np.random.Generator) -> npt.NDArray[np.float32]:
    """(1024, 3) float32 points of `cloud` (..., 3) inside the working space."""
    points = cloud.reshape(-1, 3)
    with np.errstate(invalid="ignore"):
        inside = points[((points > CROP_LOW) & (points < CROP_HIGH)).all(axis=1)]
    if not len(inside):
        raise PolicyError(f"no point of the front camera lies between {CROP_LOW} and {CROP_HIGH}; check the camera")
    chosen = random.permutation(len(inside))[:POINTS]
    return np.ascontiguousarray(np.resize(inside[chosen], (POINTS, 3)))
