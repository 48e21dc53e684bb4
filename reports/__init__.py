"""Everything that consumes results: comparisons, tables, figures."""

from reports.diff import ConfigurationDiff, Difference, ReplayDiff, diff_replays
from reports.flips import FLIP_CLASSES, Flip
from reports.masks import draw_masks, mask_classes
from reports.rank import Ranking, rank, rank_table
from reports.sweeps import sweep_table
from reports.tables import replay_table

__all__ = [
    "FLIP_CLASSES",
    "ConfigurationDiff",
    "Difference",
    "Flip",
    "Ranking",
    "ReplayDiff",
    "diff_replays",
    "draw_masks",
    "mask_classes",
    "rank",
    "rank_table",
    "replay_table",
    "sweep_table",
]
