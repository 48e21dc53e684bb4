"""Carries out one key-pose action: interpolates the tool's pose over the action's seconds and drives the servos."""

from __future__ import annotations

from collections.abc import Iterator

import mujoco
import numpy as np
import numpy.typing as npt

from recorders.sim.arm import ARM_JOINTS, JAW_JOINTS, JAW_TRAVEL
from recorders.sim.geometry import Vector, rotated, rotation_between, rotation_values
from recorders.sim.kinematics import ArmKinematics
from recorders.sim.world import World
from tracekit.actions import ActionSpec
from tracekit.errors import PolicyError

__all__ = ["LONGEST_MOVE", "LONGEST_TURN", "TICK_SECONDS", "ArmController", "refuse_spec"]

TICK_SECONDS = 0.02
"""Time between two commands to the servos."""

LONGEST_MOVE = 0.15
"""Metres the tool may travel in one key pose; a longer action is shortened along its direction."""

LONGEST_TURN = 1.0
"""Radians the tool may turn in one key pose."""

_SETTLE_TICKS = 3
"""Last ticks of a key pose that repeat the goal, so that the arm has arrived when the next observation is taken."""


def refuse_spec(spec: ActionSpec) -> None:
    """Raise PolicyError unless the simulated arm can carry out actions of `spec`."""
    if spec.frame not in {"base", "world"} or spec.pace != "key_pose" or spec.seconds < TICK_SECONDS:
        raise PolicyError(
            f"actions in frame {spec.frame!r} at pace {spec.pace!r} of {spec.seconds:g} s: the simulated arm carries "
            f'out key poses of {TICK_SECONDS:g} s or longer in frame "base" (or "world", the same); use such a policy'
        )


class ArmController:
    """Drives the arm of one compiled scene. `spec` says what the numbers of an action mean (see `refuse_spec`)."""

    def __init__(self, world: World, spec: ActionSpec, kinematics: ArmKinematics) -> None:
        refuse_spec(spec)
        self._world, self._spec, self._kinematics = world, spec, kinematics
        self._arm_servos = [int(world.model.actuator(name).id) for name in ARM_JOINTS]
        self._jaw_servos = [int(world.model.actuator(name).id) for name in JAW_JOINTS]
        self._substeps = round(TICK_SECONDS / world.model.opt.timestep)
        self._joints = world.arm_joints()
        self._point, self._frame = kinematics.pose(self._joints)
        world.data.ctrl[self._arm_servos] = self._joints

    def state(self) -> Vector:
        """(A,) measured proprioception in the layout of `spec`: tool point, its frame's rotation, opening."""
        turn = rotation_values(self._spec.rotation_form, self._world.tool_frame())
        return np.concatenate([self._tool_point(), turn, [self._world.opening()]])

    def carry_out(self, action: npt.NDArray[np.floating]) -> Iterator[None]:
        """Moves through one key-pose action (A,), yielding after every control tick.

        The goal is the action's position, or the measured tool point plus its offset (shortened to LONGEST_MOVE), with
        the action's rotation, or the measured one turned by it (approached by at most LONGEST_TURN); the jaws open
        fully when the last number exceeds the threshold and close otherwise. Raises PolicyError when the action has
        another shape or is not finite.
        """
        if not np.isfinite(np.asarray(action, np.float64)).all():
            raise PolicyError(
                f"action contains values that are not finite: {np.asarray(action)}; check the policy's read-out"
            )
        data = self._world.data
        delta, rotation, opening = self._spec.split(action)
        tool = self._tool_point()
        if self._spec.translation == "absolute":
            delta = delta - tool
        if self._spec.rotation == "delta":
            rotation = rotation @ self._world.tool_frame()
        length = float(np.linalg.norm(delta))
        goal = tool + delta * min(1.0, LONGEST_MOVE / max(length, 1e-12))
        start = self._point
        turn = rotation_between(self._frame, rotation)
        turn = turn * min(1.0, LONGEST_TURN / max(float(np.linalg.norm(turn)), 1e-12))
        first_frame = self._frame
        data.ctrl[self._jaw_servos] = JAW_TRAVEL if opening > self._spec.gripper_threshold else 0.0
        ticks = round(self._spec.seconds / TICK_SECONDS)
        moving = max(1, ticks - _SETTLE_TICKS)
        for tick in range(ticks):
            share = min(1.0, (tick + 1) / moving)
            self._point = start + share * (goal - start)
            self._frame = rotated(first_frame, share * turn)
            self._joints = self._kinematics.solve(self._joints, self._point, self._frame)
            data.ctrl[self._arm_servos] = self._joints
            mujoco.mj_step(self._world.model, data, self._substeps)
            self._world.refresh()
            yield

    def _tool_point(self) -> Vector:
        """(3,) tool centre point in the base frame."""
        return self._world.tool_point() - self._world.base
