"""The accuracy pass: every step of every chosen episode once, decisions and actions, no attention to time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from replay.source import RecordedEpisode, RecordedStep
from tracekit.config import Configuration
from tracekit.engine import Beside, Controller, StepOptions, StepResult
from tracekit.errors import TracekitError
from tracekit.policy import Policy

__all__ = ["EpisodeReplay", "StepReplay", "replay_episode", "replay_steps"]


@dataclass(frozen=True, slots=True)
class StepReplay:
    """One replayed step beside what was recorded.

    `memory`: the pruner's state before the step. `pinned`: every pass was encoded from the FPS starts of pass 0;
    `recorded_pinned`: so it was in the recorded run.
    """

    recorded: RecordedStep
    result: StepResult
    memory: Any
    pinned: bool = False
    recorded_pinned: bool = False

    @property
    def encode_matches(self) -> bool | None:
        """Whether the recomputed encoder outputs have the recorded digests; None if the trace has none."""
        if self.recorded.rows_digest is None:
            return None
        recorded = [digest.tobytes() for digest in self.recorded.rows_digest]
        encoded = [record.rows_digest for record in self.result.encoded]
        if self.pinned:
            return all(digest == recorded[0] for digest in encoded)
        comparable = 1 if self.recorded_pinned else len(recorded)
        return encoded[:comparable] == recorded[: min(comparable, len(encoded))]

    @property
    def mask_bits(self) -> tuple[int, int] | None:
        """(equal, all) bits of the kept tokens over the passes; None if the recorded run was not pruned."""
        if self.recorded.kept is None:
            return None
        equal = self.result.kept == self.recorded.kept
        return int(equal.sum()), equal.size

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
    *,
    recorded_pinned: bool = False,
    beside: Beside | None = None,
) -> EpisodeReplay:
    """Replay all steps of `episode` under `config`; `advance` is called after each. `index`: see `Controller.reset`.

    `recorded_pinned`: whether the recorded run pinned the FPS starts of every pass to those of pass 0. `beside`: see
    `tracekit.engine.StepOptions`.
    """
    options = StepOptions(encoded="digest", beside=beside)
    steps: list[StepReplay] = []
    for step in replay_steps(policy, config, episode, options, index, recorded_pinned=recorded_pinned):
        steps.append(step)
        advance()
    return EpisodeReplay(episode.info.id, tuple(steps))


def replay_steps(
    policy: Policy,
    config: Configuration,
    episode: RecordedEpisode,
    options: StepOptions,
    index: tuple[int, int] = (0, 0),
    *,
    recorded_pinned: bool = False,
) -> Iterator[StepReplay]:
    """The steps of `replay_episode`, one at a time: several configurations can go through an episode together."""
    controller = Controller(policy, config, options)
    controller.reset(episode.info.uid, index=index)
    for recorded in episode.steps(config, shown=config.observe.feedback == "recorded"):
        memory = controller.memory
        controller.reset(episode.info.uid, steps=recorded.number - 1, memory=memory, index=index)
        try:
            result = controller.step(recorded.observation, recorded.draws, recorded.seen, recorded.displacement_m)
        except TracekitError as error:
            where = f"configuration {config.name!r}, episode {episode.info.id!r}, step {recorded.number}"
            raise type(error)(f"{where}: {error}") from None
        yield StepReplay(recorded, result, memory, config.reuse.fps == "pinned", recorded_pinned)
