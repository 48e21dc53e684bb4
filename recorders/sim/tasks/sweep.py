"""Sweeping a block over the table with a brush, into one of two dustpans that differ by colour."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import mujoco
import numpy as np

from recorders.sim.arm import HAND, TCP
from recorders.sim.geometry import Vector, frame_from, heading, quaternion_z
from recorders.sim.palette import draw_colours, shade
from recorders.sim.tasks.base import MOUNTS, Disc, ToolPose, draw_opposite_azimuths
from recorders.sim.world import World

__all__ = ["SweepScenario", "draw_sweep"]

_SENTENCES = (
    "sweep the block into the {} dustpan",
    "push the white block into the {} dustpan",
    "move the block into the {} dustpan",
    "get the white block into the {} dustpan",
    "use the brush to sweep the block onto the {} dustpan",
)
_GEOM_BOX = mujoco.mjtGeom.mjGEOM_BOX
_ITEM = "target_item"
_WHITE, _BRISTLES = (0.95, 0.95, 0.93, 1.0), (0.20, 0.20, 0.22, 1.0)

_DEPTH, _WIDTH, _WALL, _RIM = 0.066, 0.095, 0.004, 0.015
"""Half extents of a dustpan, half the thickness and half the height of its walls, metres at size 1."""

_BRUSH, _BELOW = (0.042, 0.014, 0.030), 0.015
"""Half extents of the brush (across the push, along it, up) and its reach below the tool centre point, metres.

It is fixed to the hand: whatever the jaws do, they do not let it go.
"""

_PUSH_HEIGHT = 0.028
_TRAVEL_HEIGHT = 0.10
_PUSH = 0.085
"""Metres that the block is pushed in one key pose: less than the tool travels, so that it keeps its course."""

_DOWN = np.array([0.0, 0.0, -1.0])


class _Pan(NamedTuple):
    """A dustpan: body name, place about the base (radians, metres), yaw (where its inside lies), colour name."""

    name: str
    azimuth: float
    distance: float
    yaw: float
    colour: str

    @property
    def centre(self) -> Vector:
        return self.distance * heading(self.azimuth)


def draw_sweep(rng: np.random.Generator) -> SweepScenario:
    """A block in the middle, a dustpan on either side that opens towards the middle, give or take 20 degrees."""
    size = float(rng.uniform(0.93, 1.07))
    colours = draw_colours(rng, 2)
    pans = []
    azimuths = draw_opposite_azimuths(rng, apart=1.1, nearest=0.52)
    for name, azimuth, colour in zip(("target", "other_twin"), azimuths, colours, strict=True):
        distance = float(rng.uniform(0.39, 0.45))
        inwards = distance * heading(azimuth) - np.array([0.40, 0.0, 0.0])
        yaw = math.atan2(inwards[1], inwards[0]) + float(rng.uniform(-0.35, 0.35))
        pans.append(_Pan(name, azimuth, distance, yaw, colour))
    while True:
        block = heading(float(rng.uniform(-0.25, 0.25))) * rng.uniform(0.36, 0.44)
        if min(float(np.linalg.norm(block - pan.centre)) for pan in pans) > 0.19:
            break
    return SweepScenario(
        size=size,
        target=pans[0],
        twin=pans[1],
        block=(float(block[0]), float(block[1])),
        block_yaw=float(rng.uniform(-math.pi, math.pi)),
        block_half=float(rng.uniform(0.034, 0.038)),
        instruction=_SENTENCES[int(rng.integers(len(_SENTENCES)))].format(colours[0]),
        mount=float(rng.uniform(*MOUNTS)),
    )


@dataclass(frozen=True, slots=True)
class SweepScenario:
    """One block at `block` (metres) and two dustpans scaled by `size`; see `recorders.sim.tasks.base.Scenario`."""

    size: float
    target: _Pan
    twin: _Pan
    block: tuple[float, float]
    block_yaw: float
    block_half: float
    instruction: str
    mount: float

    @property
    def colours(self) -> tuple[str, str]:
        """Colour names of target and twin."""
        return self.target.colour, self.twin.colour

    @property
    def footprints(self) -> tuple[Disc, ...]:
        """The pans, and a lane from behind the block to each of them."""
        start = np.array([*self.block, 0.0])
        discs = []
        for pan in (self.target, self.twin):
            for share in np.linspace(-0.5, 1.0, 7):
                x, y, _ = start + share * (pan.centre - start)
                discs.append(Disc(float(x), float(y), 0.09))
        return tuple(discs)

    @property
    def stride(self) -> float:
        """Metres that the expert moves the tool in one key pose."""
        return 0.13

    def add_to(self, spec: mujoco.MjSpec) -> None:
        """Adds both dustpans and the block."""
        for pan in (self.target, self.twin):
            x, y, _ = pan.centre
            body = spec.worldbody.add_body(name=pan.name, pos=[x, y, 0], quat=quaternion_z(pan.yaw))
            self._add_pan(body, pan.colour)
        x, y, z = spec.site(TCP).pos
        spec.body(HAND).add_geom(
            name="brush",
            type=_GEOM_BOX,
            size=_BRUSH,
            pos=[x, y, z + _BELOW - _BRUSH[2]],
            rgba=_BRISTLES,
            friction=[0.2, 0.005, 0.0001],
            priority=2,
        )
        half = self.block_half
        block = spec.worldbody.add_body(name=_ITEM, pos=[*self.block, half], quat=quaternion_z(self.block_yaw))
        block.add_freejoint()
        # less than the table's friction, which would tip a block that is pushed above its middle
        block.add_geom(
            type=_GEOM_BOX,
            size=[half, half, half],
            mass=0.06,
            rgba=_WHITE,
            friction=[0.3, 0.005, 0.0001],
            priority=1,
        )

    def start(self, world: World) -> None:
        """Nothing to do: everything already lies where it was added."""

    def solved(self, world: World) -> bool:
        """The block lies between the walls of the target dustpan, with its middle behind the mouth by its own half."""
        inside = self._in_pan(world, world.position(_ITEM))
        entered = -self.size * _DEPTH + self.block_half < inside[0] < self.size * _DEPTH
        return bool(entered and abs(inside[1]) < self.size * _WIDTH and inside[2] < 0.05)

    def phase(self, world: World) -> str:
        """`reach` until the block is touched or has moved, then `push`, and `swept` at the end."""
        if self.solved(world):
            return "swept"
        moved = float(np.hypot(*(world.position(_ITEM)[:2] - self.block))) > 0.01
        return "push" if moved or world.touching("robot", _ITEM) else "reach"

    def next_pose(self, world: World) -> ToolPose:
        """Goes over to the far side of the block, sinks there, and pushes, turning as the line to the pan turns.

        What hangs on where things are seen to be changes gradually; only the tool's own height is a switch.
        """
        block, tool = world.position(_ITEM), world.tool_point()
        line = self._way(world, block)
        length = max(float(np.linalg.norm(line)), 1e-6)
        forward = line / length
        across = np.array([-forward[1], forward[0], 0.0])
        frame = _jaws_along(forward, block)
        offset = tool - block
        behind, sideways = -float(offset @ forward), float(offset @ across)
        contact = self.block_half + _BRUSH[1]
        if tool[2] < _PUSH_HEIGHT + 0.025:
            astray = max((abs(sideways) - 0.05) / 0.03, (0.02 - behind) / 0.03)
            point = block + forward * (min(_PUSH, length + 0.02) - contact)
            return ToolPose(_between(point, tool, float(np.clip(astray, 0.0, 1.0))), frame, open=False)
        point = block - forward * (contact + 0.5 * self.block_half + 0.025)
        off = float(np.clip((np.hypot(*(tool - point)[:2]) - 0.025) / 0.04, 0.0, 1.0))
        goal = _between(point, tool, off)
        if tool[2] >= _TRAVEL_HEIGHT - 0.03:
            goal[:2] = point[:2]
        return ToolPose(goal, frame, open=False)

    def _way(self, world: World, block: Vector) -> Vector:
        """Horizontal way to push: towards a point a little farther in on the pan's middle line, metres."""
        ahead = min(float(self._in_pan(world, block)[0]) + 0.20, 0.5 * self.size * _DEPTH)
        goal = world.position(self.target.name) + ahead * world.rotation(self.target.name)[:, 0]
        return np.asarray((goal - block) * (1.0, 1.0, 0.0))

    def _in_pan(self, world: World, point: Vector) -> Vector:
        """`point` in the frame of the target dustpan: x inwards, y along the mouth, from the middle of its floor."""
        return np.asarray(world.rotation(self.target.name).T @ (point - world.position(self.target.name)))

    def _add_pan(self, body: mujoco.MjsBody, colour: str) -> None:
        depth, width, wall, rim = (self.size * value for value in (_DEPTH, _WIDTH, _WALL, _RIM))
        # the floor is a mat without thickness to things, so that nothing trips over its edge
        body.add_geom(
            type=_GEOM_BOX,
            size=[depth, width, 0.0008],
            pos=[0, 0, 0.0008],
            rgba=shade(colour),
            contype=0,
            conaffinity=0,
        )
        for position, extent in (
            ([depth - wall, 0, rim], [wall, width, rim]),
            ([0, width + wall, rim], [depth, wall, rim]),
            ([0, -width - wall, rim], [depth, wall, rim]),
            ([depth + 0.035, 0, rim], [0.035, 0.010, 0.006]),
        ):
            body.add_geom(type=_GEOM_BOX, pos=position, size=extent, rgba=shade(colour, 0.80))


def _between(point: Vector, tool: Vector, off: float) -> Vector:
    """From `point` at pushing height (`off` = 0) to straight above `tool` at travelling height (1)."""
    place = point[:2] + off * (tool[:2] - point[:2])
    return np.array([place[0], place[1], _PUSH_HEIGHT + off * (_TRAVEL_HEIGHT - _PUSH_HEIGHT)])


def _jaws_along(direction: Vector, place: Vector) -> Vector:
    """Tool frame pointing down, the brush across `direction`, with the face ahead for which the wrist turns less."""
    tangent = np.array([-place[1], place[0], 0.0])
    return frame_from(_DOWN, direction if direction @ tangent > 0 else -direction)
