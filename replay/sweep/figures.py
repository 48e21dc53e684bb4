"""From masks to what a table shows: kept tokens, rates and operations of configurations on one episode."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from replay.sweep.flops import ModelSize, countable, step_flops
from replay.sweep.inputs import EpisodeInputs
from tracekit.config import Configuration
from tracekit.pruning import Decision, DecisionKey, point_mask

__all__ = ["FIGURES", "figures", "first_pruned_pass", "kept_points", "points_in_patches"]

FIGURES = ("kept_2d", "kept_3d", "rate_2d", "rate_3d", "effective_rate", "gflops")
"""Names of the figures; tokens and rates as in `replay.summary.Rates`, `gflops` of the language model per step."""

Counts = npt.NDArray[np.integer[Any]]
Mask = npt.NDArray[np.bool_]


def first_pruned_pass(config: Configuration) -> int:
    """The first denoise pass that a decision governs."""
    return 1 if config.method.observes == "forward" and config.observe.mode == "current" else 0


def points_in_patches(inputs: EpisodeInputs, keep_3d: Mask, *, pinned: bool, rows: slice = slice(None)) -> Counts:
    """(configurations, steps, passes) projected point tokens that masks over patches keep.

    `keep_3d`: (configurations, steps, N_2D), of the steps `rows`. `pinned`: all passes see the points of pass 0. Counts
    are added as floats, exactly: they stay below 2²⁴.
    """
    points = inputs.points[rows]
    masks = np.ascontiguousarray(keep_3d.transpose(1, 2, 0), np.float32)
    kept = np.matmul(points[:, :1] if pinned else points, masks)  # (steps, passes, configurations)
    counts = kept.transpose(2, 0, 1).astype(np.int64)
    return np.broadcast_to(counts, (*counts.shape[:2], inputs.passes))


def kept_points(inputs: EpisodeInputs, config: Configuration, decision: Decision, index: int) -> Counts:
    """(passes,) point tokens that `decision` keeps at row `index` of the episode."""
    kept = np.zeros(inputs.passes, np.int64)
    if inputs.patches is not None:
        key = DecisionKey(int(getattr(config.pruner, "seed", 0)), inputs.target.uid, int(inputs.numbers[index]))
        for step in range(inputs.passes):
            drawn_as = 0 if config.reuse.fps == "pinned" else step
            kept[step] = point_mask(decision, inputs.patches[index, drawn_as], drawn_as, key).sum()
    return kept


def figures(
    inputs: EpisodeInputs,
    config: Configuration,
    kept_2d: Counts,
    kept_3d: Counts,
    pruned: Mask,
    size: ModelSize | None,
) -> dict[str, npt.NDArray[np.float64] | None]:
    """The `FIGURES`, (configurations,) each; `gflops` is None where the policy's size is not known.

    `kept_2d` (configurations, steps), `kept_3d` (configurations, steps, passes): tokens that decisions keep, and
    `pruned` (configurations, steps) whether they are in force. `config`: one of them; they observe and reuse alike.
    """
    n_2d, n_3d = inputs.shape.n_2d, inputs.shape.n_3d
    governed = np.broadcast_to(pruned[:, :, None], kept_3d.shape) & (
        np.arange(inputs.passes) >= first_pruned_pass(config)
    )
    by_pass = np.where(governed, kept_2d[:, :, None], n_2d)
    visual = by_pass + np.where(governed, kept_3d, n_3d)
    count = governed.sum((1, 2))
    mean_2d = _mean(by_pass, governed, count, n_2d)
    mean_3d = _mean(kept_3d, governed, count, n_3d)
    flops = None
    if size is not None and countable(config):
        flops = step_flops(size, inputs.layout, visual, config.reuse).mean(-1) / 1e9
    return {
        "kept_2d": mean_2d,
        "kept_3d": mean_3d,
        "rate_2d": 1 - mean_2d / n_2d,
        "rate_3d": 1 - mean_3d / n_3d if n_3d else np.zeros(len(mean_3d)),
        "effective_rate": 1 - visual.mean((1, 2)) / (n_2d + n_3d),
        "gflops": flops,
    }


def _mean(kept: Counts, governed: Mask, count: Counts, everything: int) -> npt.NDArray[np.float64]:
    """(configurations,) mean over the pruned passes; of nothing pruned, everything."""
    total = np.where(governed, kept, 0).sum((1, 2))
    return np.where(count > 0, total / np.maximum(count, 1), float(everything))
