"""One closed-loop episode: the engine's controller answers every observation of the simulator."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from recorders.recorder import Recorder
from recorders.sim.environment import VIEW, Environment, episode_uid
from recorders.sim.evaluate.controls import swap_colours
from tracekit.engine import Captured, Controller, StepResult

__all__ = ["EpisodeOutcome", "run_episode"]


@dataclass(frozen=True, slots=True)
class EpisodeOutcome:
    """How one episode went: key poses taken, milliseconds of every control step, shares of tokens that were dropped.

    `pruned_image`, `pruned_point`: mean over steps and denoise passes; 0 for a modality that the policy lacks.
    """

    success: bool
    steps: int
    step_ms: tuple[float, ...]
    pruned_image: float
    pruned_point: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"step_ms": [round(ms, 3) for ms in self.step_ms]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> EpisodeOutcome:
        """Inverse of `to_json`; raises ValueError, TypeError or KeyError for anything else."""
        outcome = cls(**data | {"step_ms": tuple(data["step_ms"])})
        numbers = (*outcome.step_ms, outcome.pruned_image, outcome.pruned_point)
        if not isinstance(outcome.success, bool) or len(outcome.step_ms) != outcome.steps or not outcome.steps:
            raise ValueError("success or steps of another kind")
        if not all(math.isfinite(number) and number >= 0 for number in numbers) or max(numbers[-2:]) > 1:
            raise ValueError("times or shares of another kind")
        return outcome


def run_episode(
    controller: Controller,
    environment: Environment,
    seed: int,
    *,
    wrong_instruction: bool = False,
    recorder: Recorder | None = None,
) -> EpisodeOutcome:
    """Run the episode of `seed` to its end; of a chunk of actions the first is executed.

    `wrong_instruction`: the policy is told the twin's colour; success stays what the scene says. `recorder`: of the
    same controller, writes the episode as `<task>-<seed>`.
    """
    observation = environment.reset(seed)
    instruction = environment.instruction
    if wrong_instruction:
        instruction = swap_colours(instruction, environment.scenario.colours)
    uid = episode_uid(environment.task, seed)
    controller.reset(uid)
    results: list[StepResult] = []
    with ExitStack() as stack:
        episode = None
        if recorder is not None:
            cameras = {VIEW: environment.camera}
            episode = stack.enter_context(
                recorder.episode(environment.task, instruction, seed=seed, uid=uid, cameras=cameras)
            )
        done = success = False
        while not done:
            seen = replace(observation, instruction=instruction)
            if episode is None:
                result = controller.step(seen)
            else:
                with episode.step(seen, environment.phase) as step:
                    result = controller.step(seen)
                    step.action = result.action[0]
            # What is kept of a step is small; its observables are not.
            results.append(replace(result, captured=Captured(), encoded=(), memory=None))
            outcome = environment.step(result.action[0])
            observation, done, success = outcome.observation, outcome.done, outcome.success
        if episode is not None:
            episode.success = success
    images = len(results[0].layout.image_positions)
    dropped = ~np.stack([result.kept for result in results])
    return EpisodeOutcome(
        success=success,
        steps=len(results),
        step_ms=tuple(result.wall_ns / 1e6 for result in results),
        pruned_image=_mean(dropped[..., :images]),
        pruned_point=_mean(dropped[..., images:]),
    )


def _mean(dropped: npt.NDArray[np.bool_]) -> float:
    return float(dropped.mean()) if dropped.size else 0.0
