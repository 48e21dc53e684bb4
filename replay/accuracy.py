"""The accuracy pass: every step of every chosen episode once, decisions and actions, no attention to time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from replay.source import RecordedEpisode, RecordedStep
from tracekit.config import Configuration
from tracekit.engine import Controller, StepOptions, StepResult
from tracekit.policy import Policy

__all__ = ["EpisodeReplay", "StepReplay", "replay_episode"]


@dataclass(frozen=True, slots=True)
class StepReplay:
    """One replayed step beside what was recorded.

    `memory`: the pruner's state before the step. `pinned`: every pass was encoded from the FPS starts of pass 0.
    """

    recorded: RecordedStep
    result: StepResult
    memory: Any
    pinned: bool = False

    @property
    def encode_matches(self) -> bool | None:
        """Whether the recomputed encoder outputs have the recorded digests; None if the trace has none."""
        if self.recorded.rows_digest is None:
            return None
        recorded = [digest.tobytes() for digest in self.recorded.rows_digest]
        encoded = [record.rows_digest for record in self.result.encoded]
        return encoded == [recorded[0 if self.pinned else step] for step in range(len(encoded))]

    @property
    def action_matches(self) -> bool | None:
        """Whether the unclipped action is bitwise the recorded one; None if the trace has none."""
        if self.recorded.unclipped is None:
            return None
        return self.recorded.unclipped.tobytes() == np.ascontiguousarray(self.result.unclipped).tobytes()


@dataclass(frozen=True, slots=True)
class EpisodeReplay:
    """One replayed episode."""

    id: str
    steps: tuple[StepReplay, ...] = field(default=())


def replay_episode(
    policy: Policy,
    config: Configuration,
    episode: RecordedEpisode,
    advance: Callable[[], None],
    index: tuple[int, int] = (0, 0),
) -> EpisodeReplay:
    """Replay all steps of `episode` under `config`; `advance` is called after each. `index`: see `Controller.reset`."""
    controller = Controller(policy, config, StepOptions(encoded="digest"))
    controller.reset(episode.info.uid, index=index)
    steps: list[StepReplay] = []
    for recorded in episode.steps(config, shown=config.observe.feedback == "recorded"):
        memory = controller.memory
        controller.reset(episode.info.uid, steps=recorded.number - 1, memory=memory, index=index)
        result = controller.step(recorded.observation, recorded.draws, recorded.seen, recorded.displacement_m)
        steps.append(StepReplay(recorded, result, memory, config.reuse.fps == "pinned"))
        advance()
    return EpisodeReplay(episode.info.id, tuple(steps))
