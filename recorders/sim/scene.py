"""Puts a scene together: table, arm, the task's objects, distractors, and the light, all drawn from one generator."""

from __future__ import annotations

import math
from dataclasses import dataclass

import mujoco
import numpy as np

from recorders.sim.arm import ARM_JOINTS, HOME, add_arm
from recorders.sim.geometry import heading, quaternion_z
from recorders.sim.palette import draw_colours, shade
from recorders.sim.sensor import FRONT, Light
from recorders.sim.tasks.base import Disc, Scenario
from recorders.sim.world import World

__all__ = ["Scene", "build_scene"]

_BOX, _CYLINDER, _PLANE = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CYLINDER, mujoco.mjtGeom.mjGEOM_PLANE
_TABLES = ((0.66, 0.55, 0.43), (0.52, 0.42, 0.34), (0.60, 0.59, 0.57), (0.47, 0.48, 0.50))
_FLOOR, _STEEL = (0.40, 0.41, 0.43, 1.0), (0.28, 0.29, 0.31, 1.0)
_FLOOR_BELOW = 0.90
"""Metres from the arm's base down to the floor."""

_TABLE_FRONT = 0.95
"""Metres from the arm to the edge of the table on the camera's side, out of its view."""

_CLEARANCE = 0.03
"""Metres of free table around every footprint."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A world ready to be stepped, and the light it is seen in."""

    world: World
    light: Light


def build_scene(scenario: Scenario, rng: np.random.Generator) -> Scene:
    """Compiles `scenario` with the arm at rest, each joint up to 0.05 rad off HOME; draws surroundings and light."""
    spec = mujoco.MjSpec()
    spec.compiler.degree = False
    spec.modelname = "tracekit tabletop"
    spec.option.timestep = 0.002
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 10.0
    _add_table(spec, scenario.mount, rng)
    add_arm(spec, scenario.mount)
    _add_stand(spec, scenario.mount)
    scenario.add_to(spec)
    _add_distractors(spec, scenario, rng)
    model = spec.compile()
    world = World(model, mujoco.MjData(model))
    world.set_joints(ARM_JOINTS, HOME + rng.uniform(-0.05, 0.05, len(ARM_JOINTS)))
    scenario.start(world)
    mujoco.mj_forward(model, world.data)
    return Scene(world, _draw_light(rng))


def _add_table(spec: mujoco.MjSpec, mount: float, rng: np.random.Generator) -> None:
    """A table of any depth and width. Where its edges lie in the picture does not hang on its height, so tells nothing.

    An edge that is so many times farther from the camera than the camera is above the table is always seen in one line.
    """
    colour = (*_TABLES[int(rng.integers(len(_TABLES)))], 1.0)
    eye_x, _, eye_z = FRONT.translation
    far, width = (eye_z + mount) * rng.uniform((1.40, 0.72), (2.20, 1.10))
    depth = 0.5 * (_TABLE_FRONT - eye_x + float(far))
    spec.worldbody.add_geom(
        name="table",
        type=_BOX,
        size=[depth, float(width), 0.02],
        pos=[_TABLE_FRONT - depth, 0, -0.02],
        rgba=colour,
    )


def _add_stand(spec: mujoco.MjSpec, mount: float) -> None:
    """What carries the arm: a deck on two posts behind it, which hides from the camera where they meet the table."""
    floor = mount - _FLOOR_BELOW
    spec.worldbody.add_geom(name="floor", type=_PLANE, size=[3, 3, 0.1], pos=[0, 0, floor], rgba=_FLOOR)
    stand = spec.worldbody.add_body(name="robot_stand", pos=[0, 0, mount])
    stand.add_geom(name="deck", type=_BOX, size=[0.15, 0.11, 0.004], pos=[-0.05, 0, 0.004], rgba=_STEEL)
    half = 0.5 * _FLOOR_BELOW
    for name, side in (("left_post", 0.09), ("right_post", -0.09)):
        stand.add_geom(name=name, type=_BOX, size=[0.015, 0.015, half], pos=[-0.18, side, -half], rgba=_STEEL)


def _draw_light(rng: np.random.Generator) -> Light:
    x, y, z = rng.uniform((0.2, -0.9, 1.3), (1.0, 0.9, 1.8))
    return Light((float(x), float(y), float(z)), float(rng.uniform(0.38, 0.55)), float(rng.uniform(0.36, 0.48)))


def _add_distractors(spec: mujoco.MjSpec, scenario: Scenario, rng: np.random.Generator) -> None:
    """Zero to three loose things of other shapes and colours, clear of the task's footprints and of each other."""
    colours = draw_colours(rng, 3, without=scenario.colours)
    taken = list(scenario.footprints)
    for index in range(int(rng.integers(0, 4))):
        radius = float(rng.uniform(0.018, 0.028))
        height = float(rng.uniform(0.012, 0.03))
        tall = bool(rng.random() < 0.5)
        yaw = float(rng.uniform(-math.pi, math.pi))
        spot = _free_spot(radius * math.sqrt(2), taken, rng)
        if spot is None:
            continue
        taken.append(spot)
        body = spec.worldbody.add_body(
            name=f"other_distractor{index}", pos=[spot.x, spot.y, height + 0.0005], quat=quaternion_z(yaw)
        )
        body.add_freejoint()
        body.add_geom(
            type=_CYLINDER if tall else _BOX,
            size=[radius, height, 0] if tall else [radius, radius, height],
            mass=0.08,
            rgba=shade(colours[index]),
        )


def _free_spot(radius: float, taken: list[Disc], rng: np.random.Generator) -> Disc | None:
    """A disc of `radius` metres on the table in the camera's view that keeps clear of all discs in `taken`."""
    for _ in range(40):
        x, y, _ = heading(float(rng.uniform(-0.85, 0.85))) * rng.uniform(0.26, 0.70)
        spot = Disc(float(x), float(y), radius)
        if all(math.hypot(x - disc.x, y - disc.y) > radius + disc.radius + _CLEARANCE for disc in taken):
            return spot
    return None
