"""What can be recorded: a run that takes control steps and keeps the last one's result."""

from __future__ import annotations

from typing import Protocol

from tracekit.actions import ActionSpec
from tracekit.config import Configuration
from tracekit.engine import StepDraws, StepOptions, StepResult
from tracekit.policy import PolicyIdentity

__all__ = ["Recordable", "RecordedPolicy"]


class RecordedPolicy(Protocol):
    """What a trace says of the policy."""

    @property
    def identity(self) -> PolicyIdentity:
        """Name and digests."""
        ...

    @property
    def action_spec(self) -> ActionSpec:
        """Meaning of actions and states."""
        ...


class Recordable(Protocol):
    """What can be recorded: `tracekit.engine.Controller`, or the run of a foreign policy (`recorders.attach`)."""

    options: StepOptions

    @property
    def policy(self) -> RecordedPolicy:
        """Whose actions they are."""
        ...

    @property
    def config(self) -> Configuration:
        """How it is run."""
        ...

    @property
    def last(self) -> StepResult | None:
        """The last step's result; None at the start of an episode."""
        ...

    @property
    def last_draws(self) -> StepDraws | None:
        """The last step's random inputs."""
        ...

    @property
    def steps(self) -> int:
        """Control steps taken in this episode."""
        ...

    def reset(self, episode_uid: int) -> None:
        """Start an episode."""
        ...
