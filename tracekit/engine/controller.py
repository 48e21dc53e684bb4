"""A policy in a run: it counts the steps of an episode and carries the pruner's memory between them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit.config import Configuration
from tracekit.engine.deciding import FrameMemory, repeated
from tracekit.engine.draws import StepDraws, draw
from tracekit.engine.observing import from_sensors, translation_m
from tracekit.engine.result import StepResult
from tracekit.engine.step import StepOptions, control_step
from tracekit.engine.threads import execution_threads
from tracekit.observation import Observation
from tracekit.policy import Policy
from tracekit.profiling import StageClock, pack_payload
from tracekit.pruning import DecisionKey, Observables, Scores

__all__ = ["Controller"]


class Controller:
    """Drives `policy` under `config`. `reset` starts an episode; every `step` is one control step of it.

    `memory` is the pruner's state after the last step, `last` its result and `last_draws` its random inputs.
    The same controller serves live runs and replays: a replay passes the recorded `draws`, a live run lets it draw.
    """

    def __init__(self, policy: Policy, config: Configuration | None = None, options: StepOptions | None = None) -> None:
        self.policy = policy
        self.config = config or Configuration()
        self.options = options or StepOptions()
        self.last: StepResult | None = None
        self.last_draws: StepDraws | None = None
        self._episode_uid = 0
        self._step = 0
        self._index = (0, 0)
        self.memory: Any = None
        self._moved_m: float | None = None

    def reset(self, episode_uid: int, *, steps: int = 0, memory: Any = None, index: tuple[int, int] = (0, 0)) -> None:
        """Start the episode `episode_uid` (uint64, what all random draws are keyed by).

        `steps` and `memory` (the pruner's state after that many steps) resume it in the middle. `index`: numbers of the
        configuration and of the episode in a run of several, for the payload of the NVTX ranges.
        """
        self._index = index
        self._episode_uid, self._step, self.memory = episode_uid, steps, memory
        self.last, self.last_draws, self._moved_m = None, None, None

    @property
    def steps(self) -> int:
        """Control steps taken in this episode."""
        return self._step

    def step(
        self,
        observation: Observation,
        draws: StepDraws | None = None,
        recorded: Scores | Observables | None = None,
        displacement_m: float | None = None,
    ) -> StepResult:
        """One control step on `observation`, computed with the threads of the configuration.

        A replay passes the recorded `draws` and, for `observe.feedback = "recorded"`, what the `recorded` step showed.
        `displacement_m`: length of the translation executed before, by default that of this controller's own action.

        Raises PolicyError or ConfigError (one line) if observation, policy and configuration do not fit.
        """
        number, memory = self._step + 1, self.memory
        clock = StageClock(self.policy.passes, pack_payload(*self._index, number))
        frames = self.config.reuse.kind == "skip_frame"
        if frames and memory is not None:
            if self.config.repeats(number) and memory.last is not None:
                return self._took(repeated(memory, clock), self.last_draws, observation)
            memory = memory.memory
        with execution_threads(self.config.execution):
            with clock.stage("encode"):
                tokens = self.policy.tokenize(observation)
            draws = draws or draw(self.policy, tokens, self._episode_uid, number)
            pruner_seed = int(getattr(self.config.pruner, "seed", 0))
            result = control_step(
                self.policy,
                tokens,
                self.config,
                draws,
                DecisionKey(pruner_seed, self._episode_uid, number),
                memory,
                clock=clock,
                options=self.options,
                recorded=recorded,
                sensed=from_sensors(
                    self.config,
                    observation,
                    tokens.layout.views,
                    self._moved_m if displacement_m is None else displacement_m,
                ),
            )
        if frames:
            result = replace(result, memory=FrameMemory(result.memory, result))
        return self._took(result, draws, observation)

    def _took(self, result: StepResult, draws: StepDraws | None, observation: Observation) -> StepResult:
        self._moved_m = translation_m(self.policy.action_spec, result.action, observation.state)
        self._step, self.memory, self.last, self.last_draws = self._step + 1, result.memory, result, draws
        # callers may scale the action in place before they execute it; what was said stays in `last`
        return replace(result, action=result.action.copy())

    def act(self, observation: Observation) -> npt.NDArray[np.float64]:
        """(T, A) float64 action of one control step; the whole result stays in `last`."""
        return self.step(observation).action
