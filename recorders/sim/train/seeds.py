"""Which seeds of the simulator are for training and for its held-out loss: `evaluate` takes neither."""

from __future__ import annotations

from tracekit.errors import ConfigError

__all__ = ["MOST_EPISODES", "TRAINING_SEEDS", "VALIDATION_SEEDS", "refuse_training_seeds"]

TRAINING_SEEDS = 1_000_000
"""Demonstration i of a task is the scene of seed TRAINING_SEEDS + i."""

VALIDATION_SEEDS = 2_000_000
"""First seed of the demonstrations on which the held-out loss is measured."""

MOST_EPISODES = 100_000
"""Per task and call. Demonstrations of more would not fit into memory, of a million would reach the held-out seeds."""


def refuse_training_seeds(seed: int, episodes: int) -> None:
    """Raise ConfigError unless seeds `seed` ... `seed` + `episodes` - 1 are at least 0 and below the training seeds."""
    if seed < 0:
        raise ConfigError(f"--seed {seed}: give a non-negative integer")
    if seed + episodes > TRAINING_SEEDS:
        raise ConfigError(
            f"--seed {seed} with {episodes} episodes: seeds from {TRAINING_SEEDS} on are for training; evaluate on "
            "seeds below"
        )
