"""A scripted expert that sees the simulator's true state and answers in the same actions a policy would."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from recorders.sim.environment import Environment
from recorders.sim.geometry import Vector, cylindrical_step, rotation_values

__all__ = ["Expert", "ExpertEpisode", "expert_episode", "expert_success"]


class Expert:
    """Closes the loop at key-pose pace. It keeps no memory: what it does depends on the scene's present state alone."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def act(self) -> Vector:
        """The next action (A,) in `environment.action_spec`; its offset is no longer than the scenario's stride."""
        world, scenario, spec = self._environment.world, self._environment.scenario, self._environment.action_spec
        goal = scenario.next_pose(world)
        tool = world.tool_point()
        place = cylindrical_step(tool, goal.point, scenario.stride)
        translation = place - (world.base if spec.translation == "absolute" else tool)
        turn = goal.frame if spec.rotation == "absolute" else goal.frame @ world.tool_frame().T
        return np.concatenate([translation, rotation_values(spec.rotation_form, turn), [float(goal.open)]])


class ExpertEpisode(NamedTuple):
    """How one episode of the expert went."""

    success: bool
    key_poses: int


def expert_episode(environment: Environment, seed: int) -> ExpertEpisode:
    """Runs the expert through the episode of `seed`."""
    environment.reset(seed)
    expert = Expert(environment)
    while True:
        outcome = environment.step(expert.act())
        if outcome.done:
            return ExpertEpisode(outcome.success, environment.steps)


def expert_success(task: str, seeds: Iterable[int]) -> float:
    """Share of `seeds` on which the expert solves `task`, run without the sensor."""
    environment = Environment(task, sensor=False)
    return float(np.mean([expert_episode(environment, seed).success for seed in seeds]))
