"""What is asked of every call that runs episodes."""

from __future__ import annotations

from collections.abc import Sequence

from recorders.sim.tasks import find_task
from recorders.sim.train.seeds import MOST_EPISODES, refuse_training_seeds
from tracekit.errors import ConfigError

__all__ = ["refuse_episodes", "refuse_tasks"]


def refuse_tasks(tasks: Sequence[str]) -> None:
    """Raise ConfigError unless `tasks` are known and each is named once."""
    if len(set(tasks)) < len(tasks):
        raise ConfigError(f"--task {','.join(tasks)}: a task is named twice; name each once")
    for task in tasks:
        find_task(task)


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
