"""What a task has to offer: a scenario drawn from a seed, and poses for the expert that solves it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import mujoco
import numpy as np

from recorders.sim.geometry import Vector
from recorders.sim.world import World

__all__ = ["MOUNTS", "WIDEST_AZIMUTH", "Disc", "DrawScenario", "Scenario", "ToolPose", "draw_opposite_azimuths"]

WIDEST_AZIMUTH = math.radians(52.0)
"""Half the sector about the base, in radians, in which objects are placed."""


MOUNTS = (0.02, 0.20)
"""Metres that the base of the arm stands above the table, and the camera with it: the least and the most.

Drawn for every scene. A picture alone then does not tell how far away things are; points do.
"""


class Disc(NamedTuple):
    """A patch of the table, metres from the arm, that nothing else may stand on."""

    x: float
    y: float
    radius: float


class ToolPose(NamedTuple):
    """Where the expert wants the tool next: point (3,), frame (3, 3), and whether the jaws are open."""

    point: Vector
    frame: Vector
    open: bool


class Scenario(Protocol):
    """One drawn episode of a task.

    Root bodies of what the instruction names are called `target...`, those of the twin and of everything else
    `other...`; the sensor tells segmentation classes by these names.
    """

    @property
    def instruction(self) -> str:
        """The sentence a policy is given. It names `colours[0]`."""

    @property
    def colours(self) -> tuple[str, str]:
        """Colour names of the target and of its twin."""

    @property
    def footprints(self) -> tuple[Disc, ...]:
        """Where distractors may not stand: the objects and the room the arm needs."""

    @property
    def mount(self) -> float:
        """Metres that the arm, and the camera with it, stands above the table, within MOUNTS."""

    @property
    def stride(self) -> float:
        """Metres that the expert moves the tool in one key pose."""

    def add_to(self, spec: mujoco.MjSpec) -> None:
        """Adds the task's objects to an uncompiled scene."""

    def start(self, world: World) -> None:
        """Puts the task's joints into their first positions."""

    def solved(self, world: World) -> bool:
        """Whether the target, and not the twin, is now as the instruction asks."""

    def phase(self, world: World) -> str:
        """What is being done now, as an annotation for traces."""

    def next_pose(self, world: World) -> ToolPose:
        """What to do from here on: a function of the present state alone, so it can also correct a policy's course."""


DrawScenario = Callable[[np.random.Generator], Scenario]


def draw_opposite_azimuths(rng: np.random.Generator, apart: float, nearest: float) -> tuple[float, float]:
    """Azimuths in radians of target and twin, on different sides of the base's x axis.

    Each is at least `nearest` from that axis and at most WIDEST_AZIMUTH; they are at least `apart` from each other.
    """
    while True:
        first, second = rng.uniform(nearest, WIDEST_AZIMUTH, 2)
        if first + second >= apart:
            break
    side = 1.0 if rng.random() < 0.5 else -1.0
    return float(side * first), float(-side * second)
