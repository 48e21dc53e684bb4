"""A tri-stage configuration as the plain numbers that the compiled stages read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast, get_args, get_type_hints

import numpy as np
import numpy.typing as npt

from tracekit.layout import PATCHES_PER_VIEW
from tracekit.pruning.arrays import Rule
from tracekit.pruning.base import Shape
from tracekit.pruning.tri_stage_config import TriStageConfig

__all__ = ["moving_patches", "rule_of", "rules_of"]

_CHOICES = {name: get_args(hint) for name, hint in get_type_hints(TriStageConfig).items()}
_DTYPE = np.dtype(
    [(name, {bool: "?", int: "i8", float: "f8"}[hint]) for name, hint in get_type_hints(Rule).items()], align=True
)


def rules_of(configs: Sequence[TriStageConfig], shape: Shape) -> np.recarray[Any, Any]:
    """(len(configs),) `Rule`s for a policy of `shape`. A choice becomes its place among the option's values."""
    return np.array([_numbers(config, shape) for config in configs], _DTYPE).view(np.recarray)


def rule_of(config: TriStageConfig, shape: Shape) -> Rule:
    """The one rule of `rules_of`."""
    return cast("Rule", rules_of((config,), shape)[0])


def _numbers(config: TriStageConfig, shape: Shape) -> tuple[bool | int | float, ...]:
    numbers: dict[str, bool | int | float] = {
        "s1": "s1" in config.stages,
        "s2": "s2" in config.stages,
        "s3": "s3" in config.stages,
        "prune_2d": config.modalities != "3d",
        "prune_3d": config.modalities != "2d",
        "has_points": shape.n_3d > 0,
        "tau_2d": float(config.tau_2d),
        "tau_3d": float(config.tau_3d),
        "beta": float(config.beta),
        "k": int(config.k),
        "window_mean": config.window == "window_mean",
        "smooth_moving": config.moving_view == "on",
        "clamp": config.ortho == "clamp",
        "separate": config.clustering == "separate",
        "smoothed_clusters": config.cluster_input == "smoothed",
        "inverse": config.cluster_order == "inverse",
        "baseline": _place(config, "baseline"),
        "quantiles": config.object_rule == "quantiles",
        "object_2d_min": float(config.object_2d_min),
        "object_3d_max": float(config.object_3d_max),
        "background_rate": float(config.background_rate),
        "draw": _place(config, "draw"),
        "robot_keeps_2d": config.robot_empty == "keep_2d",
        "protect": _place(config, "protect"),
        "soft_budget": config.budget == "soft",
        "hard_budget": config.budget == "hard_topk",
        "rate": float(config.rate),
        "n_3d": int(shape.n_3d),
        "index": config.reduction.correspondence == "index",
        "unprojected": _place(config, "unprojected_points"),
        "prune_from": config.prune_from if "s3" in config.stages else 1,
    }
    return tuple(numbers[name] for name in _DTYPE.names or ())


def moving_patches(shape: Shape) -> npt.NDArray[np.bool_]:
    """(N_2D,) patches of the views whose camera moves."""
    if not any(shape.moving):
        return np.zeros(shape.n_2d, np.bool_)
    return np.repeat(np.array(shape.moving, np.bool_), PATCHES_PER_VIEW)


def _place(config: TriStageConfig, name: str) -> int:
    return _CHOICES[name].index(getattr(config, name))
