"""Closing things on a hinge: a box, a laptop, a fridge. The twin stands open on the other side and has to stay open."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import mujoco
import numpy as np

from recorders.sim.geometry import Vector, frame_from, heading, quaternion_z
from recorders.sim.palette import draw_colours, shade
from recorders.sim.tasks.base import MOUNTS, WIDEST_AZIMUTH, Disc, ToolPose, draw_opposite_azimuths
from recorders.sim.world import World

__all__ = ["BOX", "FRIDGE", "LAPTOP", "HingedKind", "HingedScenario", "draw_hinged"]

CLOSED = 0.08
"""Radians: a hinge below this angle counts as closed."""

_GEOM_BOX = mujoco.mjtGeom.mjGEOM_BOX
_WALL = 0.004
_PUSH_AT = 0.80
"""Share of the panel's length, from the hinge, at which the expert pushes."""

_STANDOFF = 0.012
"""Metres between the panel's middle plane and the tool centre point when the finger tip touches it."""

_BEHIND = 0.06
"""Metres the expert keeps from the panel before it starts to push."""


@dataclass(frozen=True, slots=True)
class HingedKind:
    """Shape and placement of one kind of object. `half`: half extents (depth, width, height) in metres.

    Object frame: x points away from the arm, the origin is the middle of the near edge on the table. A lid's hinge lies
    along y on the near edge at `hinge_height`; a door's stands upright on either end of the near edge, by seed.
    `spread`: metres that a thing stands nearer or farther than `distance` at most. `beyond`: radians past shut to which
    the expert pushes.
    """

    sentences: tuple[str, ...]
    half: tuple[float, float, float]
    panel_length: float
    panel_mass: float
    friction: float
    openings: tuple[float, float]
    distance: float
    apart: float
    stride: float
    hinge_height: float = 0.0
    nearest: float = 0.1
    spread: float = 0.10
    beyond: float = 0.08
    upright: bool = False
    hollow: bool = True


BOX = HingedKind(
    sentences=(
        "close the {} box",
        "shut the {} box",
        "put down the lid of the {} box",
        "fold the lid onto the {} box",
    ),
    half=(0.085, 0.075, 0.05),
    hinge_height=0.104,
    panel_length=0.17,
    panel_mass=0.10,
    friction=0.15,
    openings=(1.7, 2.0),
    distance=0.44,
    apart=0.60,
    stride=0.065,
)
LAPTOP = HingedKind(
    sentences=(
        "close the {} laptop",
        "shut the {} laptop",
        "close the lid of the {} laptop",
        "fold down the screen of the {} laptop",
    ),
    half=(0.080, 0.100, 0.009),
    hinge_height=0.024,
    panel_length=0.16,
    panel_mass=0.10,
    friction=0.15,
    openings=(1.5, 1.9),
    distance=0.43,
    apart=0.70,
    stride=0.065,
    hollow=False,
)
FRIDGE = HingedKind(
    sentences=(
        "close the {} fridge",
        "shut the {} fridge",
        "close the door of the {} fridge",
        "push the door of the {} fridge shut",
    ),
    half=(0.070, 0.085, 0.07),
    panel_length=0.17,
    panel_mass=0.25,
    friction=0.25,
    openings=(0.8, 1.2),
    distance=0.49,
    apart=0.95,
    stride=0.09,
    nearest=0.30,
    spread=0.07,
    beyond=0.04,
    upright=True,
)


class _Placed(NamedTuple):
    """One of the twins: body name, place about the base (radians, metres), yaw, hinge angle, colour name."""

    name: str
    azimuth: float
    distance: float
    yaw: float
    opening: float
    colour: str

    @property
    def hinge(self) -> str:
        return f"{self.name}_hinge"

    @property
    def panel(self) -> str:
        return f"{self.name}_panel"


def draw_hinged(kind: HingedKind, rng: np.random.Generator, *, narrow: bool = False) -> HingedScenario:
    """Target and twin of one size on different sides: distance ± the kind's `spread`, yaw ± 20 degrees, any opening.

    `narrow`: the target always stands on the left, and a door's hinge too, x ± 2 cm, y ± 6 cm, yaw ± 14 degrees about
    one place, all of one size, and the arm at one height: scenes that need no eyes, to show that a policy without them
    can learn.
    """
    size = 1.0 if narrow else float(rng.uniform(0.85, 1.12))
    colours = draw_colours(rng, 2)
    if narrow:
        usual = 0.5 * (max(kind.nearest, 0.5 * kind.apart) + WIDEST_AZIMUTH)
        places = (_near(side * usual, kind.distance, rng) for side in (1.0, -1.0))
    else:
        places = (
            (
                azimuth,
                kind.distance + float(rng.uniform(-kind.spread, kind.spread)),
                azimuth + float(rng.uniform(-0.35, 0.35)),
            )
            for azimuth in draw_opposite_azimuths(rng, kind.apart, kind.nearest)
        )
    placed = [
        _Placed(name, *place, opening=float(rng.uniform(*kind.openings)), colour=colour)
        for name, place, colour in zip(("target", "other_twin"), places, colours, strict=True)
    ]
    sentence = kind.sentences[int(rng.integers(len(kind.sentences)))]
    hand = 1.0 if narrow or rng.random() < 0.5 else -1.0
    mount = 0.5 * sum(MOUNTS) if narrow else float(rng.uniform(*MOUNTS))
    return HingedScenario(kind, size, hand, placed[0], placed[1], sentence.format(colours[0]), mount)


def _near(azimuth: float, distance: float, rng: np.random.Generator) -> tuple[float, float, float]:
    """Azimuth, distance and yaw near an object's usual place, which it faces from the base."""
    x, y, _ = distance * heading(azimuth) + rng.uniform((-0.02, -0.06, 0.0), (0.02, 0.06, 0.0))
    return math.atan2(y, x), math.hypot(x, y), azimuth + float(rng.uniform(-0.245, 0.245))


@dataclass(frozen=True, slots=True)
class HingedScenario:
    """Two open twins of `kind`, scaled by `size`, doors hinged at y = `hand` times half the width; see `Scenario`."""

    kind: HingedKind
    size: float
    hand: float
    target: _Placed
    twin: _Placed
    instruction: str
    mount: float

    @property
    def colours(self) -> tuple[str, str]:
        """Colour names of target and twin."""
        return self.target.colour, self.twin.colour

    @property
    def footprints(self) -> tuple[Disc, ...]:
        """The bodies, and the room in front of them in which the panel swings and the arm works."""
        depth, width = self.kind.half[0] * self.size, self.kind.half[1] * self.size
        discs = []
        for placed in (self.target, self.twin):
            corner = placed.distance * heading(placed.azimuth)
            for along, radius in ((depth, math.hypot(depth, width)), (-0.09, 0.16)):
                x, y, _ = corner + along * heading(placed.yaw)
                discs.append(Disc(float(x), float(y), radius))
        return tuple(discs)

    @property
    def stride(self) -> float:
        """Metres that the expert moves the tool in one key pose."""
        return self.kind.stride

    def add_to(self, spec: mujoco.MjSpec) -> None:
        """Adds both twins."""
        for placed in (self.target, self.twin):
            x, y, _ = placed.distance * heading(placed.azimuth)
            body = spec.worldbody.add_body(name=placed.name, pos=[x, y, 0], quat=quaternion_z(placed.yaw))
            for position, extent in _walls(self.kind, self.size):
                body.add_geom(type=_GEOM_BOX, pos=position, size=extent, rgba=shade(placed.colour))
            self._add_panel(body, placed)

    def start(self, world: World) -> None:
        """Opens both twins."""
        world.set_joints((self.target.hinge, self.twin.hinge), (self.target.opening, self.twin.opening))

    def solved(self, world: World) -> bool:
        """The target is closed and the twin has kept more than half of its opening."""
        return world.joint(self.target.hinge) < CLOSED and world.joint(self.twin.hinge) > 0.5 * self.twin.opening

    def phase(self, world: World) -> str:
        """`reach` until the panel is touched or has moved, then `push`, and `closed` at the end."""
        angle = world.joint(self.target.hinge)
        if angle < CLOSED:
            return "closed"
        pushed = angle < self.target.opening - 0.05 or world.touching("robot", self.target.name)
        return "push" if pushed else "reach"

    def next_pose(self, world: World) -> ToolPose:
        """Goes round the panel's edge when needed, stops behind its outer face, then pushes along the hinge's arc."""
        angle = world.joint(self.target.hinge)
        along, outward, axis = self._panel_frame(world, angle)
        offset = world.tool_point() - world.position(self.target.panel)
        behind, reach, sideways = float(offset @ outward), float(offset @ along), float(offset @ axis)
        length = self.kind.panel_length * self.size
        reached = abs(reach - _PUSH_AT * length)
        waiting = self._push_pose(world, angle, _BEHIND)
        push = self._push_pose(world, max(angle - 0.55, -self.kind.beyond), -0.004)
        if self.kind.upright:
            astray = max((reached - 0.05) / 0.05, (abs(sideways) - 0.04) / 0.05, (-0.01 - behind) / 0.03)
            return self._round_the_edge(world.tool_point(), push, waiting, float(np.clip(astray, 0.0, 1.0)))
        if reached < 0.06 and abs(sideways) < 0.05 and -0.02 < behind < _BEHIND + 0.03:
            return push
        if behind < 0.02 and not self._beside(world, waiting.point):
            return self._hover(world, waiting)
        return waiting

    def _round_the_edge(self, tool: Vector, push: ToolPose, waiting: ToolPose, astray: float) -> ToolPose:
        """Between pushing (`astray` = 0) and going over the top to where the tool can sink behind the door (1).

        What hangs on where the door is seen to be changes gradually; only the tool's own height is a switch.
        """
        top = self._top
        off = float(np.clip((np.hypot(*(waiting.point - tool)[:2]) - 0.04) / 0.04, 0.0, 1.0))
        share = 1.0 - off if tool[2] < top - 0.06 else 1.0
        place = tool[:2] + share * (waiting.point - tool)[:2]
        way = np.array([place[0], place[1], waiting.point[2] + off * (top - waiting.point[2])])
        return push._replace(point=push.point + astray * (way - push.point))

    def _beside(self, world: World, waiting: Vector) -> bool:
        """Whether the tool may sink to the waiting point: it is above that point or has already sunk there."""
        return float(np.hypot(*(world.tool_point() - waiting)[:2])) < 0.05

    def _hover(self, world: World, waiting: ToolPose) -> ToolPose:
        """Above the waiting point, higher than anything on the table; first straight up when still low."""
        tool = world.tool_point()
        point = np.array([waiting.point[0], waiting.point[1], self._top])
        if tool[2] < self._top - 0.06:
            point[:2] = tool[:2]
        return waiting._replace(point=point)

    @property
    def _top(self) -> float:
        """Metres above the table, higher than anything on it."""
        return 0.26 * self.size + 0.09

    def _panel_frame(self, world: World, angle: float) -> tuple[Vector, Vector, Vector]:
        """Unit vectors (3,) at hinge `angle`: along the panel from there, out of its outer face, along its axis."""
        frame = world.rotation(self.target.name)
        shut, wide = frame[:, 0], frame[:, 2]
        if self.kind.upright:
            shut, wide = -self.hand * frame[:, 1], -frame[:, 0]
        along = math.cos(angle) * shut + math.sin(angle) * wide
        outward = -math.sin(angle) * shut + math.cos(angle) * wide
        return along, outward, np.cross(along, outward)

    def _push_pose(self, world: World, angle: float, gap: float) -> ToolPose:
        """The tool `gap` metres off the outer face of the panel, were its hinge at `angle`."""
        along, outward, _ = self._panel_frame(world, angle)
        length = self.kind.panel_length * self.size
        point = world.position(self.target.panel) + _PUSH_AT * length * along + (_STANDOFF + gap) * outward
        frame = world.rotation(self.target.name)
        if self.kind.upright:
            forward = 0.75 * frame[:, 0] - 0.10 * outward - 0.65 * frame[:, 2]
        else:
            dip = float(np.clip(0.70 + (1.75 - angle) * 0.20, 0.60, 1.00))
            forward = math.cos(dip) * frame[:, 0] - math.sin(dip) * frame[:, 2]
        return ToolPose(point, frame_from(forward, np.cross([0.0, 0.0, 1.0], forward)), open=False)

    def _add_panel(self, body: mujoco.MjsBody, placed: _Placed) -> None:
        kind, size = self.kind, self.size
        _, width, height = (size * value for value in kind.half)
        length = size * kind.panel_length
        colour = shade(placed.colour, 0.80)
        origin = [-0.008, self.hand * width, height] if kind.upright else [0.0, 0.0, size * kind.hinge_height]
        panel = body.add_body(name=placed.panel, pos=origin)
        panel.add_joint(
            name=placed.hinge,
            type=mujoco.mjtJoint.mjJNT_HINGE,
            axis=[0, 0, -self.hand] if kind.upright else [0, -1, 0],
            range=[0.0, 2.4],
            damping=0.02,
            frictionloss=kind.friction,
            armature=0.0005,
            solimp_friction=[0.98, 0.999, 0.001, 0.5, 2],
        )
        if kind.upright:
            panel.add_geom(
                type=_GEOM_BOX,
                size=[0.005, length / 2, height],
                pos=[0, -self.hand * length / 2, 0],
                rgba=colour,
                mass=kind.panel_mass,
            )
            panel.add_geom(
                type=_GEOM_BOX,
                size=[0.006, 0.006, 0.4 * height],
                pos=[-0.011, self.hand * (0.02 - length), 0.3 * height],
                rgba=(0.12, 0.12, 0.13, 1.0),
                mass=0.01,
            )
        else:
            extent, middle = [length / 2, width, _WALL], [length / 2, 0, 0]
            panel.add_geom(type=_GEOM_BOX, size=extent, pos=middle, rgba=colour, mass=kind.panel_mass)


def _walls(kind: HingedKind, size: float) -> list[tuple[list[float], list[float]]]:
    """(position, half extents) of the boxes that make up the body."""
    depth, width, height = (size * value for value in kind.half)
    if not kind.hollow:
        return [([depth, 0, height], [depth, width, height])]
    sides = [
        ([2 * depth - _WALL, 0, height], [_WALL, width, height]),
        ([depth, width - _WALL, height], [depth, _WALL, height]),
        ([depth, _WALL - width, height], [depth, _WALL, height]),
        ([depth, 0, _WALL], [depth, width, _WALL]),
    ]
    if kind.upright:
        return [
            *sides,
            ([depth, 0, 2 * height - _WALL], [depth, width, _WALL]),
            ([depth, 0, height], [depth, width - 2 * _WALL, 0.003]),
        ]
    return [*sides, ([_WALL, 0, height], [_WALL, width, height])]
