"""A compiled scene and its present state, with the few questions that tasks and experts ask of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mujoco
import numpy as np
import numpy.typing as npt

from recorders.sim.arm import ARM_JOINTS, JAW_JOINTS, JAW_TRAVEL, TCP
from recorders.sim.geometry import Vector
from recorders.sim.sensor import SegmentationClass

__all__ = ["World"]

_CLASSES = {
    "robot": SegmentationClass.ROBOT,
    "target": SegmentationClass.TARGET,
    "other": SegmentationClass.OTHER,
}


@dataclass(frozen=True, slots=True)
class World:
    """`model` and `data` of MuJoCo. Positions in metres from the point of the table below the arm; angles in radians.

    The axes are those of the arm's base frame, whose origin is `base`: what policies see and do is measured from there.
    """

    model: mujoco.MjModel
    data: mujoco.MjData

    def refresh(self) -> None:
        """Brings body, site and camera poses up to the joint positions: after a step they lag behind by one substep."""
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)

    @property
    def base(self) -> Vector:
        """(3,) origin of the arm's base frame: how high above the table is not always the same."""
        return self.position("robot")

    def tool_point(self) -> Vector:
        """(3,) tool centre point."""
        return np.array(self.data.site(TCP).xpos)

    def tool_frame(self) -> Vector:
        """(3, 3) tool frame: z out of the flange, y along the travel of the jaws."""
        return np.array(self.data.site(TCP).xmat).reshape(3, 3)

    def opening(self) -> float:
        """Opening of the gripper, 0 closed ... 1 open."""
        travel = np.mean([self.joint(name) for name in JAW_JOINTS])
        return float(np.clip(travel / JAW_TRAVEL, 0.0, 1.0))

    def arm_joints(self) -> Vector:
        """(6,) joint angles of the arm."""
        return np.array([self.joint(name) for name in ARM_JOINTS])

    def joint(self, name: str) -> float:
        """Position of a hinge or slide."""
        return float(self.data.joint(name).qpos[0])

    def set_joints(self, names: Sequence[str], values: npt.NDArray[np.float64] | Sequence[float]) -> None:
        """Places hinges and slides, at rest."""
        for name, value in zip(names, values, strict=True):
            self.data.joint(name).qpos[0] = value

    def position(self, body: str) -> Vector:
        """(3,) origin of a body."""
        return np.array(self.data.body(body).xpos)

    def rotation(self, body: str) -> Vector:
        """(3, 3) frame of a body."""
        return np.array(self.data.body(body).xmat).reshape(3, 3)

    def touching(self, first: str, second: str) -> bool:
        """Whether the trees rooted in bodies `first` and `second` are in contact."""
        roots = self.model.body_rootid[self.model.geom_bodyid[self.data.contact.geom]]
        pair = (self.model.body(first).id, self.model.body(second).id)
        return bool(((roots == pair) | (roots == pair[::-1])).all(axis=1).any())

    def segmentation_classes(self) -> npt.NDArray[np.uint8]:
        """(ngeom,) class of every shape, told by the name of its root body, see `Scenario`."""
        names = [self.model.body(int(root)).name for root in self.model.body_rootid[self.model.geom_bodyid]]
        return np.array([_CLASSES.get(name.split("_")[0], SegmentationClass.BACKGROUND) for name in names], np.uint8)
