"""The tasks by name. A task is a function that draws one scenario from a generator."""

from __future__ import annotations

import difflib
from functools import partial

from recorders.sim.tasks.banana import draw_banana
from recorders.sim.tasks.base import DrawScenario
from recorders.sim.tasks.hinged import BOX, FRIDGE, LAPTOP, draw_hinged
from recorders.sim.tasks.sweep import draw_sweep
from tracekit.errors import ConfigError

__all__ = ["NARROW_TASKS", "TASKS", "find_task"]

_DRAW: dict[str, DrawScenario] = {
    "banana_on_plate": draw_banana,
    "close_box": partial(draw_hinged, BOX),
    "close_fridge": partial(draw_hinged, FRIDGE),
    "close_laptop": partial(draw_hinged, LAPTOP),
    "sweep_to_dustpan": draw_sweep,
}

_NARROW: dict[str, DrawScenario] = {
    "close_box_narrow": partial(draw_hinged, BOX, narrow=True),
    "close_fridge_narrow": partial(draw_hinged, FRIDGE, narrow=True),
    "close_laptop_narrow": partial(draw_hinged, LAPTOP, narrow=True),
}

TASKS: tuple[str, ...] = tuple(_DRAW)
"""Names of the tasks that measure something."""

NARROW_TASKS: tuple[str, ...] = tuple(_NARROW)
"""Names of tasks that need no eyes: the same code that fails blind on `TASKS` has to learn these."""


def find_task(name: str) -> DrawScenario:
    """The function that draws scenarios of task `name`; raises ConfigError with the nearest known names otherwise."""
    known = _DRAW | _NARROW
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3) or TASKS
        raise ConfigError(f"unknown simulator task {name!r}; did you mean {' or '.join(near)}?")
    return known[name]
