"""One task as a policy meets it: reset to a seed, then one observation per key-pose action."""

from __future__ import annotations

import hashlib
import time
from typing import Any, NamedTuple

import mujoco
import numpy as np
import numpy.typing as npt

from recorders.sim.cloud import sample_cloud
from recorders.sim.controller import ArmController, refuse_spec
from recorders.sim.kinematics import ArmKinematics
from recorders.sim.scene import Scene, build_scene
from recorders.sim.sensor import FRONT, RayCamera
from recorders.sim.tasks import find_task
from recorders.sim.tasks.base import Scenario
from recorders.sim.world import World
from tracekit.actions import ActionSpec
from tracekit.camera import Camera
from tracekit.errors import ConfigError
from tracekit.observation import Observation

__all__ = ["MAX_STEPS", "SCENE_VERSION", "VIEW", "Environment", "StepOutcome", "episode_uid"]

MAX_STEPS = 16
VIEW = "front"

SCENE_VERSION = 4
"""Counts up whenever a seed would give another scene, so that traces of different scenes are never taken for one."""

_HELD_TICKS = 8
"""Control ticks (20 ms each) in a row for which the task must be solved."""


class StepOutcome(NamedTuple):
    """What one action led to: the next observation, whether the task is solved, whether the episode is over, phase."""

    observation: Observation
    success: bool
    done: bool
    phase: str


class Environment:
    """A task of the simulator. With `sensor=False` observations carry state and instruction only, which is much faster.

    `action_spec`: what the numbers of actions and states mean, the policy's own; by default `ActionSpec()`.

    The same seed gives bitwise the same observations (time stamps apart) and outcomes on one version of MuJoCo, in any
    process; no global random state is read or written. Raises ConfigError for an unknown task and PolicyError for
    actions that the arm cannot carry out.
    """

    def __init__(self, task: str, action_spec: ActionSpec | None = None, *, sensor: bool = True) -> None:
        self._draw = find_task(task)
        self.action_spec = action_spec or ActionSpec()
        refuse_spec(self.action_spec)
        self._sensor = sensor
        self._kinematics = ArmKinematics()
        self._episode: _Episode | None = None
        self.task = task
        self.max_steps = MAX_STEPS

    @property
    def camera(self) -> Camera:
        """The model of the front camera."""
        return FRONT

    @staticmethod
    def version() -> dict[str, str]:
        """What the bitwise claim depends on."""
        return {"mujoco": mujoco.__version__, "numpy": np.__version__, "scene": str(SCENE_VERSION)}

    @property
    def seed(self) -> int:
        """Seed of the running episode."""
        return self._running.seed

    @property
    def episode_uid(self) -> int:
        """Number of the running episode, as `episode_uid` gives it."""
        return episode_uid(self.task, self.seed)

    @property
    def steps(self) -> int:
        """Actions carried out since `reset`."""
        return self._running.steps

    @property
    def instruction(self) -> str:
        """The sentence of the running episode."""
        return self.scenario.instruction

    @property
    def phase(self) -> str:
        """What the arm is doing now, told from the state of the scene and not from who moves it."""
        return self.scenario.phase(self.world)

    @property
    def scenario(self) -> Scenario:
        """The drawn episode: true state for experts and tests, not for policies."""
        return self._running.scenario

    @property
    def world(self) -> World:
        """The simulated world: true state for experts and tests, not for policies."""
        return self._running.world

    def reset(self, seed: int) -> Observation:
        """Builds the scene of `seed` (a non-negative integer, else ConfigError) and returns the first observation."""
        if seed < 0:
            raise ConfigError(f"seed of task {self.task} is {seed}; give a non-negative integer")
        rng = np.random.Generator(np.random.PCG64(episode_uid(self.task, seed)))
        scenario = self._draw(rng)
        scene = build_scene(scenario, rng)
        world = scene.world
        camera = self._camera(scene) if self._sensor else None
        controller = ArmController(world, self.action_spec, self._kinematics)
        self._episode = _Episode(seed, scenario, world, controller, camera)
        return self._observe()

    def step(self, action: npt.NDArray[np.floating[Any]]) -> StepOutcome:
        """Carries out one action (A,) of `action_spec`.

        Success means that the task was solved for 0.16 s without a break; it ends the episode, as does `max_steps`.
        Raises PolicyError for an unusable action and ConfigError when no episode is running.
        """
        episode = self._running
        if episode.done:
            raise ConfigError(f"the episode of task {self.task}, seed {episode.seed}, is over; call reset(seed) first")
        success = False
        for _ in episode.controller.carry_out(action):
            episode.held = episode.held + 1 if episode.scenario.solved(episode.world) else 0
            if episode.held >= _HELD_TICKS:
                success = True
        episode.steps += 1
        episode.done = success or episode.steps >= self.max_steps
        return StepOutcome(self._observe(), success, episode.done, self.phase)

    @staticmethod
    def _camera(scene: Scene) -> RayCamera:
        world = scene.world
        return RayCamera(world.model, FRONT, world.segmentation_classes(), scene.light, world.base)

    @property
    def _running(self) -> _Episode:
        if self._episode is None:
            raise ConfigError(f"task {self.task} has no running episode; call reset(seed) first")
        return self._episode

    def _observe(self) -> Observation:
        episode = self._running
        state = episode.controller.state()
        stamps = {"state": time.monotonic_ns()}
        if episode.camera is None:
            return Observation(images={}, points=None, state=state, instruction=self.instruction, time_ns=stamps)
        reading = episode.camera.read(episode.world.data)
        stamps[VIEW] = time.monotonic_ns()
        points = sample_cloud(reading.points, self.episode_uid, episode.steps)
        stamps["points"] = stamps[VIEW]
        return Observation(
            images={VIEW: reading.rgb},
            points=points,
            state=state,
            instruction=self.instruction,
            cameras={VIEW: FRONT},
            depth={VIEW: reading.depth},
            segmentation={VIEW: reading.segmentation},
            time_ns=stamps,
        )


class _Episode:
    """Everything that lasts from one reset to the next."""

    def __init__(
        self, seed: int, scenario: Scenario, world: World, controller: ArmController, camera: RayCamera | None
    ) -> None:
        self.seed, self.scenario, self.world = seed, scenario, world
        self.controller, self.camera = controller, camera
        self.steps, self.held, self.done = 0, 0, False


def episode_uid(task: str, seed: int) -> int:
    """Number of the episode of `seed`: the first 8 bytes, big-endian, of SHA-256 of `sim:<task>:<seed>`."""
    return int.from_bytes(hashlib.sha256(f"sim:{task}:{seed}".encode()).digest()[:8], "big")
