"""Many configurations over recorded episodes: grids, cells addressed by content, and one table."""

from replay.sweep.best import Constraint, best, configuration_toml, parse_constraint
from replay.sweep.grid import Grid, Range
from replay.sweep.grid_file import grid_names, grid_of, load_grid
from replay.sweep.plan import method_digest
from replay.sweep.run import SweepResult, sweep
from replay.sweep.table import front, per_configuration

__all__ = [
    "Constraint",
    "Grid",
    "Range",
    "SweepResult",
    "best",
    "configuration_toml",
    "front",
    "grid_names",
    "grid_of",
    "load_grid",
    "method_digest",
    "parse_constraint",
    "per_configuration",
    "sweep",
]
