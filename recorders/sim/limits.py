"""What is asked of every call that runs episodes."""

from __future__ import annotations

from recorders.sim.train.seeds import MOST_EPISODES, refuse_training_seeds
from tracekit.errors import ConfigError

__all__ = ["refuse_episodes"]


def refuse_episodes(episodes: int, seed: int, *, policy_drives: bool) -> None:
    """Raise ConfigError unless `episodes` seeds from `seed` on can be run.

    Where `policy_drives`, they must be seeds that no training uses: a policy is judged on scenes it has not seen.
    """
    if not 1 <= episodes <= MOST_EPISODES:
        raise ConfigError(f"--episodes {episodes}: give 1 to {MOST_EPISODES}")
    if seed < 0:
        raise ConfigError(f"--seed {seed}: give a non-negative integer")
    if policy_drives:
        refuse_training_seeds(seed, episodes)
