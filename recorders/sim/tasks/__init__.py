"""The tasks by name. A task is a function that draws one scenario from a generator."""

from __future__ import annotations

import difflib
from functools import partial

from recorders.sim.tasks.banana import draw_banana
from recorders.sim.tasks.base import DrawScenario
from recorders.sim.tasks.hinged import BOX, FRIDGE, LAPTOP, draw_hinged
from recorders.sim.tasks.sweep import draw_sweep
from tracekit.errors import ConfigError

__all__ = ["TASKS", "find_task"]

_DRAW: dict[str, DrawScenario] = {
    "banana_on_plate": draw_banana,
    "close_box": partial(draw_hinged, BOX),
    "close_fridge": partial(draw_hinged, FRIDGE),
    "close_laptop": partial(draw_hinged, LAPTOP),
    "sweep_to_dustpan": draw_sweep,
}

TASKS: tuple[str, ...] = tuple(_DRAW)
"""Names of all tasks."""


def find_task(name: str) -> DrawScenario:
    """The function that draws scenarios of task `name`; raises ConfigError with the nearest known names otherwise."""
    if name not in _DRAW:
        near = difflib.get_close_matches(name, TASKS, n=3) or TASKS
        raise ConfigError(f"unknown simulator task {name!r}; did you mean {' or '.join(near)}?")
    return _DRAW[name]
