"""What `killing` kills: a `Recorder` with its queue and thread, around a step source that costs next to nothing.

One control step of the small policy is computed once; every recorded step is that one, with its number in the noise and
in the action.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from recorders import Recorder
from recorders.sim import Environment
from tests.small import make_config, make_policy
from tracekit.capture import CaptureSpec
from tracekit.engine import Controller, StepOptions
from tracekit.observation import Observation

STEPS = 40
EPISODES = ("first", "second")


class Repeating:
    """A `Recordable` that takes the same step again and again."""

    def __init__(self, controller: Controller, observation: Observation) -> None:
        self.policy, self.config, self.options = controller.policy, controller.config, controller.options
        result = controller.step(observation)
        self._result, self._draws = replace(result, captured=result._captured), controller.last_draws
        self.last, self.last_draws, self.steps = None, None, 0

    def reset(self, episode_uid: int) -> None:
        self.last, self.last_draws, self.steps = None, None, 0

    def act(self) -> np.ndarray:
        self.steps += 1
        self.last = replace(self._result, action=np.full_like(self._result.action, self.steps))
        self.last_draws = replace(self._draws, noise=np.full_like(self._draws.noise, self.steps))
        return self.last.action


def prepare() -> Callable[[Path, Callable[[str], None]], None]:
    os.fsync = lambda descriptor: None  # a killed process loses nothing that the system has
    torch.set_num_threads(1)
    observation = Environment("close_box").reset(7)
    spec = CaptureSpec.minimal()
    source = Repeating(Controller(make_policy(), make_config(), StepOptions(spec, encoded="digest")), observation)
    small = replace(
        observation,
        images={view: image[:8, :8].copy() for view, image in observation.images.items()},
        points=observation.points[:8].copy(),
        depth={},
        segmentation={},
        cameras={},
    )

    def record(path: Path, say: Callable[[str], None]) -> None:
        with Recorder(path, source, spec) as recorder:
            say("opened")
            for name in EPISODES:
                with recorder.episode("task", small.instruction, uid=1, episode_id=name) as episode:
                    for _ in range(STEPS):
                        with episode.step(small) as step:
                            step.action = source.act()
                        say(f"step {name}")
                say(f"committed {name}")

    return record
