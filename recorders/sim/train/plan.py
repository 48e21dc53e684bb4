"""What a training run is: everything that a user decides and its losses depend on, as one frozen record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from recorders.sim.tasks import TASKS, find_task
from recorders.sim.train.seeds import MOST_EPISODES, TRAINING_SEEDS, VALIDATION_SEEDS
from tracekit.errors import ConfigError

__all__ = ["KEPT_TOKENS", "TrainingPlan", "thinned_steps"]

KEPT_TOKENS = 96
"""Tokens of each modality that are kept, at random, in every thinned step: it costs a third. The second half of a run
always sees all of them, so that no policy is hardened against pruning."""

_HELD_OUT = 12


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """`episodes` demonstrations per task of `tasks`, `steps` steps of `batch` frames with `draws` noise draws each.

    `thinned`: share of the steps, from the first on, that see thinned tokens. `blind`: state and text only, the control
    that must fail. `auxiliary`: whether the auxiliary losses are added.
    `resumed_from`: weights digest of the policy that the run started from (with a fresh optimiser), else None.
    """

    tasks: tuple[str, ...] = TASKS
    episodes: int = 600
    steps: int = 12_000
    seed: int = 0
    batch: int = 16
    draws: int = 8
    learning_rate: float = 1e-3
    thinned: float = 0.5
    blind: bool = False
    auxiliary: bool = True
    resumed_from: str | None = None

    def __post_init__(self) -> None:
        for name in ("episodes", "steps", "batch", "draws"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} {getattr(self, name)}: give at least 1")
        if self.episodes > MOST_EPISODES:
            raise ConfigError(f"--episodes {self.episodes}: give at most {MOST_EPISODES} per task")
        if not 0 <= self.thinned <= 0.5:
            raise ConfigError(f"--thinned {self.thinned}: a share of the steps from 0 to 0.5; the rest sees all tokens")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"--seed {self.seed}: give an integer from 0 to 2^63 - 1")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ConfigError(f"--tasks {','.join(self.tasks)}: name at least one task, and each once")
        for task in self.tasks:
            find_task(task)

    @property
    def demonstrations(self) -> Sequence[tuple[str, int]]:
        """Task and seed of every episode that is learned from."""
        return [(task, TRAINING_SEEDS + i) for i in range(self.episodes) for task in self.tasks]

    @property
    def held_out(self) -> Sequence[tuple[str, int]]:
        """Task and seed of every episode on which the held-out loss is measured."""
        return [(task, VALIDATION_SEEDS + i) for i in range(_HELD_OUT) for task in self.tasks]

    def kept_tokens(self, step: int, available: int) -> int:
        """Tokens of a modality with `available` tokens that step `step` (0-based) sees."""
        if self.blind:
            return 0
        return min(KEPT_TOKENS, available) if step < self.thinned_steps else available

    @property
    def thinned_steps(self) -> int:
        """Steps, from the first on, that see thinned tokens."""
        return 0 if self.blind else thinned_steps(self.steps, self.thinned)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"tasks": list(self.tasks)}


def thinned_steps(steps: int, share: float) -> int:
    """Steps, from the first on, that see thinned tokens where `share` of `steps` steps do."""
    return int(steps * share)
