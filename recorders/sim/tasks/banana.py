"""Picking a banana up and laying it on one of two plates that differ by colour."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import mujoco
import numpy as np

from recorders.sim.geometry import Vector, cylindrical_step, frame_from, heading, quaternion_z, rotated
from recorders.sim.palette import draw_colours, shade
from recorders.sim.tasks.base import MOUNTS, Disc, ToolPose, draw_opposite_azimuths
from recorders.sim.world import World

__all__ = ["BananaScenario", "draw_banana"]

_SENTENCES = (
    "put the banana on the {} plate",
    "place the banana on the {} plate",
    "lay the banana onto the {} plate",
    "pick up the banana and put it on the {} plate",
    "bring the banana to the {} plate",
)
_CAPSULE, _CYLINDER = mujoco.mjtGeom.mjGEOM_CAPSULE, mujoco.mjtGeom.mjGEOM_CYLINDER
_ITEM = "target_item"
_PEEL, _STALK = (0.96, 0.84, 0.22, 1.0), (0.35, 0.26, 0.10, 1.0)

_PLATE_RADIUS, _PLATE_HALF_HEIGHT = 0.085, 0.005
_GIRTH = 0.017
"""Radius of the banana, metres at size 1."""

_GRASP_HEIGHT = 0.012
_CARRY_HEIGHT = 0.10
_AIM, _FUNNEL = 0.03, 0.035
"""Metres off the axis that are near enough to go straight down, and over which the travelling height is reached."""

_MIDDLE = 0.04
"""Metres on either side of the banana's middle between which it may be grasped."""

_TURNED = 0.35
"""Radians that the banana is turned at most, from lying along the line to the base."""

_DOWN = np.array([0.0, 0.0, -1.0])


class _Plate(NamedTuple):
    """A plate: body name, place about the base (radians, metres), colour name."""

    name: str
    azimuth: float
    distance: float
    colour: str

    @property
    def centre(self) -> Vector:
        return self.distance * heading(self.azimuth)


def draw_banana(rng: np.random.Generator) -> BananaScenario:
    """A banana in the middle, along the line to the base give or take 20 degrees, and a plate on either side.

    No plate has the banana's colour.
    """
    size = float(rng.uniform(0.93, 1.07))
    colours = draw_colours(rng, 2, without=("yellow",))
    azimuths = draw_opposite_azimuths(rng, apart=1.1, nearest=0.50)
    target, twin = (
        _Plate(name, azimuth, float(rng.uniform(0.38, 0.44)), colour)
        for name, azimuth, colour in zip(("target", "other_twin"), azimuths, colours, strict=True)
    )
    while True:
        place = heading(float(rng.uniform(-0.25, 0.25))) * rng.uniform(0.35, 0.45)
        if min(float(np.linalg.norm(place - plate.centre)) for plate in (target, twin)) > 0.185:
            break
    return BananaScenario(
        size=size,
        target=target,
        twin=twin,
        place=(float(place[0]), float(place[1])),
        yaw=math.atan2(place[1], place[0]) + float(rng.uniform(-_TURNED, _TURNED)) + math.pi * int(rng.integers(2)),
        instruction=_SENTENCES[int(rng.integers(len(_SENTENCES)))].format(colours[0]),
        mount=float(rng.uniform(*MOUNTS)),
    )


@dataclass(frozen=True, slots=True)
class BananaScenario:
    """A banana at `place` (metres) turned by `yaw`, and two plates, all scaled by `size`; see `Scenario`."""

    size: float
    target: _Plate
    twin: _Plate
    place: tuple[float, float]
    yaw: float
    instruction: str
    mount: float

    @property
    def colours(self) -> tuple[str, str]:
        """Colour names of target and twin."""
        return self.target.colour, self.twin.colour

    @property
    def footprints(self) -> tuple[Disc, ...]:
        """The plates, and the banana with room for the jaws."""
        plates = (Disc(float(plate.centre[0]), float(plate.centre[1]), 0.10) for plate in (self.target, self.twin))
        return (*plates, Disc(*self.place, 0.11))

    @property
    def stride(self) -> float:
        """Metres that the expert moves the tool in one key pose."""
        return 0.15

    def add_to(self, spec: mujoco.MjSpec) -> None:
        """Adds both plates and the banana."""
        radius, half = self.size * _PLATE_RADIUS, self.size * _PLATE_HALF_HEIGHT
        for plate in (self.target, self.twin):
            x, y, _ = plate.centre
            body = spec.worldbody.add_body(name=plate.name, pos=[x, y, 0])
            body.add_geom(type=_CYLINDER, size=[radius, half, 0], pos=[0, 0, half], rgba=shade(plate.colour, 0.80))
            body.add_geom(
                type=_CYLINDER,
                size=[0.72 * radius, 0.0004, 0],
                pos=[0, 0, 2 * half + 0.0004],
                rgba=shade(plate.colour),
                contype=0,
                conaffinity=0,
            )
        self._add_banana(spec)

    def start(self, world: World) -> None:
        """Nothing to do: everything already lies where it was added."""

    def solved(self, world: World) -> bool:
        """The banana lies on the target plate, and the gripper has let go of it."""
        return self._on_plate(world) and not world.touching("robot", _ITEM)

    def phase(self, world: World) -> str:
        """`reach`, `grasp` when the jaws are about the banana, `carry` while they hold it, `placed` at the end."""
        if self._on_plate(world):
            return "placed"
        if self._held(world):
            return "carry"
        return "grasp" if float(np.linalg.norm(world.tool_point() - world.position(_ITEM))) < 0.05 else "reach"

    def next_pose(self, world: World) -> ToolPose:
        """Above the banana, down, close, up, across, down, open; whichever of these the present state calls for.

        What hangs on where things are seen to be changes gradually; only the tool's own state is a switch.
        """
        tool, banana = world.tool_point(), world.position(_ITEM)
        axis = world.rotation(_ITEM)[:, 0]
        frame = _jaws_across(axis, banana)
        if self._on_plate(world):
            return ToolPose(np.array([tool[0], tool[1], max(tool[2], _CARRY_HEIGHT)]), frame, open=True)
        if self._held(world):
            return self._carry(world, tool, tool + world.position(self.target.name) - banana)
        grasp = self.size * _GRASP_HEIGHT
        along = float(np.clip((tool - banana) @ axis, -_MIDDLE, _MIDDLE))  # where it is held along itself does no harm
        nearest = banana + along * axis
        off = float(np.hypot(*(tool - nearest)[:2]))
        point = _funnel(tool, nearest, grasp, rise_below=_CARRY_HEIGHT - 0.04)
        return ToolPose(point, frame, open=bool(tool[2] > grasp + 0.012 or off > _AIM))

    def _carry(self, world: World, tool: Vector, over: Vector) -> ToolPose:
        """With the banana between the jaws: up, across to where it is above the plate, and down."""
        lowest = self.size * (2 * _PLATE_HALF_HEIGHT + _GRASP_HEIGHT)
        goal = _funnel(tool, over, lowest, rise_below=_CARRY_HEIGHT - 0.05)
        # the jaws turn with the arm's swing, so that the wrist need not
        following = cylindrical_step(tool, goal, self.stride)
        swing = math.atan2(following[1], following[0]) - math.atan2(tool[1], tool[0])
        jaws = rotated(world.tool_frame(), np.array([0.0, 0.0, swing]))[:, 1]
        return ToolPose(goal, frame_from(_DOWN, jaws), open=False)

    def _held(self, world: World) -> bool:
        """Whether the jaws have closed on the banana."""
        near = float(np.linalg.norm(world.tool_point() - world.position(_ITEM))) < 0.055
        return near and world.opening() < 0.75 and world.touching("robot", _ITEM)

    def _on_plate(self, world: World) -> bool:
        """Whether the banana's middle is well inside the target plate's edge and as low as when it lies there."""
        offset = world.position(_ITEM) - world.position(self.target.name)
        resting = self.size * (2 * _PLATE_HALF_HEIGHT + _GIRTH)
        inside = float(np.hypot(offset[0], offset[1])) < 0.6 * self.size * _PLATE_RADIUS
        return inside and float(offset[2]) < resting + 0.008

    def _add_banana(self, spec: mujoco.MjSpec) -> None:
        girth, size = self.size * _GIRTH, self.size
        body = spec.worldbody.add_body(name=_ITEM, pos=[*self.place, girth], quat=quaternion_z(self.yaw))
        body.add_freejoint()
        bend = [size * value for value in (-0.055, 0.018, -0.024, 0.0, 0.024, 0.0, 0.055, 0.018)]
        joints = [(bend[index], bend[index + 1], 0.0) for index in (0, 2, 4, 6)]
        for first, second in itertools.pairwise(joints):
            body.add_geom(type=_CAPSULE, size=[girth, 0, 0], fromto=[*first, *second], mass=0.03, rgba=_PEEL)
        for end, inner in ((joints[0], joints[1]), (joints[3], joints[2])):
            tip = [end[axis] + 0.45 * (end[axis] - inner[axis]) for axis in range(3)]
            body.add_geom(type=_CAPSULE, size=[0.45 * girth, 0, 0], fromto=[*end, *tip], mass=0.002, rgba=_STALK)


def _funnel(tool: Vector, goal: Vector, lowest: float, rise_below: float) -> Vector:
    """The point to go to on the way to `goal` at height `lowest`: the nearer to its axis, the lower.

    A tool off the axis and lower than `rise_below` rises before it goes there.
    """
    away = goal[:2] - tool[:2]
    off = float(np.clip((np.hypot(*away) - _AIM) / _FUNNEL, 0.0, 1.0))
    place = tool[:2] + (1.0 - off if tool[2] < rise_below else 1.0) * away
    return np.array([place[0], place[1], lowest + off * (_CARRY_HEIGHT - lowest)])


def _jaws_across(axis: Vector, place: Vector) -> Vector:
    """Tool frame pointing down whose jaws close across `axis`, turned the way the wrist is nearer to at `place`."""
    across = np.cross([0.0, 0.0, 1.0], axis)
    tangent = np.array([-place[1], place[0], 0.0])
    return frame_from(_DOWN, across if across @ tangent > 0 else -across)
