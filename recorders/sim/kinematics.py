"""Inverse kinematics of the arm: position first, orientation in what freedom is left."""

from __future__ import annotations

import mujoco
import numpy as np

from recorders.sim.arm import ARM_JOINTS, JOINT_RANGES, TCP, add_arm
from recorders.sim.geometry import Vector, rotation_between

__all__ = ["LARGEST_STEP", "ArmKinematics"]

LARGEST_STEP = 0.15
"""Radians a joint may move in one iteration: the linearisation holds no farther."""


class ArmKinematics:
    """Forward and inverse kinematics on a private copy of the bare arm: solving never touches a running scene."""

    def __init__(self) -> None:
        spec = mujoco.MjSpec()
        spec.compiler.degree = False
        add_arm(spec)
        self._model = spec.compile()
        self._data = mujoco.MjData(self._model)
        self._site = self._model.site(TCP).id
        self._addresses = [int(self._model.joint(name).qposadr[0]) for name in ARM_JOINTS]
        self._columns = [int(self._model.joint(name).dofadr[0]) for name in ARM_JOINTS]

    def pose(self, joints: Vector) -> tuple[Vector, Vector]:
        """Tool centre point ((3,), metres) and tool frame (3, 3) in the base frame at `joints` ((6,), radians)."""
        self._data.qpos[self._addresses] = joints
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)
        return self._data.site_xpos[self._site].copy(), self._data.site_xmat[self._site].reshape(3, 3).copy()

    def solve(self, start: Vector, position: Vector, rotation: Vector, iterations: int = 4) -> Vector:
        """(6,) joint angles near `start` that bring the tool to `position` (3,) and, if they can, to `rotation` (3, 3).

        Damped least squares in two ranks (Nakamura and Hanafusa, 1986): the step for the position comes first, the step
        for the orientation acts in its null space. The last iteration moves for the position alone, which takes back
        what the orientation's step, being long, has cost it.
        """
        joints = start.copy()
        translational, rotational = np.zeros((3, self._model.nv)), np.zeros((3, self._model.nv))
        for iteration in range(iterations):
            point, frame = self.pose(joints)
            gap, turn = position - point, rotation_between(frame, rotation)
            if max(float(np.abs(gap).max()), float(np.abs(turn).max())) < 1e-4:
                break
            mujoco.mj_jacSite(self._model, self._data, translational, rotational, self._site)
            moves, turns = translational[:, self._columns], rotational[:, self._columns]
            if iteration == iterations - 1:
                turns, turn = np.zeros_like(turns), np.zeros_like(turn)
            step = _two_rank_step(moves, turns, gap, turn)
            stuck = (joints + step < JOINT_RANGES[:, 0]) | (joints + step > JOINT_RANGES[:, 1])
            if stuck.any():  # a joint at its limit cannot help: let the others do its share
                step = _two_rank_step(moves * ~stuck, turns * ~stuck, gap, turn)
            joints = np.clip(joints + step, JOINT_RANGES[:, 0], JOINT_RANGES[:, 1])
        return joints


def _two_rank_step(moves: Vector, turns: Vector, gap: Vector, turn: Vector) -> Vector:
    """(6,) joint step that closes `gap` first and `turn` in its null space, each at most LARGEST_STEP long."""
    inverse = moves.T @ np.linalg.inv(moves @ moves.T + 1e-4 * np.eye(3))
    step = _limited(inverse @ gap)
    free = turns @ (np.eye(6) - inverse @ moves)
    return step + _limited(free.T @ np.linalg.solve(free @ free.T + 1e-2 * np.eye(3), 0.5 * turn - turns @ step))


def _limited(step: Vector) -> Vector:
    return np.asarray(step * min(1.0, LARGEST_STEP / max(float(np.abs(step).max()), 1e-12)))
