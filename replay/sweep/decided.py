"""Decisions-only cells: many configurations on one recorded episode, from its stored scores, without a forward pass."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np

from replay.decisions import decide_recorded, refuse_undecidable
from replay.sweep.digests import grid_digests
from replay.sweep.figures import FIGURES, figures, kept_points, points_in_patches
from replay.sweep.flops import ModelSize
from replay.sweep.inputs import EpisodeInputs
from tracekit.config import Configuration
from tracekit.digest import digest_json
from tracekit.engine import keep_everything
from tracekit.errors import TracekitError
from tracekit.pruning import Decision, Reduction, decision_digest
from tracekit.pruning.digest import decision_bytes
from tracekit.pruning.grid import DecisionGrid, decide_grid

__all__ = ["Row", "clustering_of", "decide_cells"]

Row = dict[str, Any]
"""The results of one cell: `decisions_digest` and the `FIGURES`."""


def decide_cells(inputs: EpisodeInputs, configs: Sequence[Configuration], size: ModelSize | None) -> list[Row]:
    """The results of every one of `configs` on the episode, in order. Raises ConfigError or TraceError.

    Tri-stage configurations that read the same scores are decided together; others one by one.
    """
    rows: list[Row] = [{} for _ in configs]
    groups: dict[Hashable, list[int]] = {}
    for index, config in enumerate(configs):
        refuse_undecidable(config)
        groups.setdefault(_group(config, index), []).append(index)
    for indices in groups.values():
        own = [configs[index] for index in indices]
        try:
            found = _together(inputs, own, size) if own[0].kind == "tri_stage" else [_alone(inputs, own[0], size)]
        except TracekitError as error:
            raise type(error)(f"{own[0].name}: {error}") from None
        for index, row in zip(indices, found, strict=True):
            rows[index] = row
    return rows


def clustering_of(config: Configuration) -> str | None:
    """The k-means problems that `config` poses, one per step of an episode: equal answers are the same problems.

    None for a configuration that clusters nothing.
    """
    pruner = config.pruner
    if config.kind != "tri_stage" or "s2" not in pruner.stages:
        return None
    posed: list[Any] = [_reduction_digest(pruner.reduction), config.observe.mode, pruner.clustering]
    if pruner.cluster_input == "smoothed" and "s3" in pruner.stages:
        posed += [pruner.beta, pruner.k, pruner.window, pruner.moving_view]
    return digest_json(posed)[:16]


@cache
def _reduction_digest(reduction: Reduction) -> str:
    return reduction.digest


def _group(config: Configuration, index: int) -> Hashable:
    """Configurations of one group are decided in one call, and their results have the same form."""
    if config.kind != "tri_stage":
        return index
    pruner = config.pruner
    return (
        pruner.reduction,
        config.observe,
        config.reuse,
        config.execution.drop,
        "s2" in pruner.stages,
        pruner.modalities == "2d",
        pruner.budget == "hard_topk",
        pruner.unprojected_points,
    )


def _alone(inputs: EpisodeInputs, config: Configuration, size: ModelSize | None) -> Row:
    inputs = inputs.following(config.reduction)
    decisions = decide_recorded(inputs.episode, config)
    points = np.stack([kept_points(inputs, config, decision, at) for at, decision in enumerate(decisions)])
    found = figures(
        inputs,
        config,
        np.array([[decision.keep_2d.sum() for decision in decisions]]),
        points[None],
        np.array([[decision.pruned for decision in decisions]]),
        size,
    )
    return _rows([decision_digest(decisions)], found)[0]


def _together(inputs: EpisodeInputs, configs: Sequence[Configuration], size: ModelSize | None) -> list[Row]:
    first, steps = configs[0], len(inputs.episode)
    inputs = inputs.following(first.reduction)
    inputs.episode.refuse_gaps(first)
    lagged = first.observe.mode == "lagged"
    whole = [at for at in range(steps) if first.observe.refreshes(int(inputs.numbers[at]))] if lagged else []
    offset = int(lagged)
    if offset == steps:  # a single step, which has seen nothing
        return [_alone(inputs, config, size) for config in configs]
    grid = decide_grid(
        inputs.scores(first.pruner.reduction, steps - offset),
        [config.pruner for config in configs],
        inputs.target.uid,
        inputs.shape,
        first_step=1 + offset,
        patch=None if inputs.patches is None else inputs.patches[offset:, 0],
    )
    kept_2d = np.full((len(configs), steps), inputs.shape.n_2d, np.int64)
    kept_3d = np.full((len(configs), steps, inputs.passes), inputs.shape.n_3d, np.int64)
    pruned = np.zeros((len(configs), steps), np.bool_)
    kept_2d[:, offset:] = grid.keep_2d.sum(-1)
    kept_3d[:, offset:] = _points(inputs, configs, grid, offset)
    pruned[:, offset:] = grid.pruned
    pruned[:, whole] = False
    found = figures(inputs, first, kept_2d, kept_3d, pruned, size)
    return _rows(_digests(inputs, grid, whole, steps), found)


def _points(inputs: EpisodeInputs, configs: Sequence[Configuration], grid: DecisionGrid, offset: int) -> Any:
    """(configurations, steps, passes) point tokens that the grid's decisions keep."""
    first, steps = configs[0], len(inputs.episode) - offset
    if inputs.patches is None:
        return 0
    if grid.of_tokens[0]:
        return grid.keep_3d_tokens.sum(-1)[:, :, None]
    if first.pruner.unprojected_points == "random" and first.pruner.modalities != "2d":
        return np.array(
            [
                [kept_points(inputs, config, grid.decision(place, at), at + offset) for at in range(steps)]
                for place, config in enumerate(configs)
            ]
        )
    pinned = first.reuse.fps == "pinned"
    kept = points_in_patches(inputs, grid.keep_3d, pinned=pinned, rows=slice(offset, None))
    if first.pruner.unprojected_points == "drop" and first.pruner.modalities != "2d":
        return kept
    lost = inputs.unprojected[offset:]
    return kept + (lost[:, :1] if pinned else lost)


def _digests(inputs: EpisodeInputs, grid: DecisionGrid, whole: Sequence[int], steps: int) -> list[str]:
    """`decision_digest` of every configuration, with everything kept at the steps `whole`."""
    taken = len(grid.pruned[0])
    kept = keep_everything(inputs.shape)
    at_once = grid_digests(grid, range(len(grid.configs)), dict.fromkeys(whole, decision_bytes(kept)), steps)
    if at_once is not None:
        return at_once

    def decisions(place: int) -> Iterable[Decision]:
        for at in range(steps):
            yield kept if at in whole else grid.decision(place, at - (steps - taken))

    return [decision_digest(decisions(place)) for place in range(len(grid.configs))]


def _rows(digests: Sequence[str], found: dict[str, Any]) -> list[Row]:
    columns = [[None] * len(digests) if found[name] is None else found[name].tolist() for name in FIGURES]
    return [
        {"decisions_digest": digest, **dict(zip(FIGURES, values, strict=True))}
        for digest, *values in zip(digests, *columns, strict=True)
    ]
