"""Decisions of many tri-stage configurations over an episode at once: what a sweep asks for."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tracekit.errors import ConfigError, TraceError
from tracekit.pruning.along import CLUSTERINGS, decide_all, draw_steps
from tracekit.pruning.answer import decision_of
from tracekit.pruning.arrays import Outcome, new_held, new_outcome, new_sets
from tracekit.pruning.base import Decision, Shape
from tracekit.pruning.rule import moving_patches, rules_of
from tracekit.pruning.scores import Scores
from tracekit.pruning.tri_stage import initial_state
from tracekit.pruning.tri_stage_config import TriStageConfig, check_shape, counts_tokens, is_pruned
from tracekit.pruning.tri_stage_state import check_scores, empty_state, memory_of, point_patches, seen_of

__all__ = ["DecisionGrid", "decide_grid"]

Mask = npt.NDArray[np.bool_]
Patches = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class DecisionGrid:
    """Decisions of `configs` (C of them) at the steps `first_step`, `first_step` + 1, … (S of them) of one episode.

    `keep_2d`: (C, S, N_2D) bool, final image masks. `keep_3d`: (C, S, N_2D) bool, final Mask_3D per patch: all true
    without points, and to be read where `of_tokens` (C,) bool is false; where it is true, the rule is about point
    tokens, and `keep_3d_tokens` (C, S, N_3D) bool counts (C, S, 0 if that is so for no configuration), except at steps
    that are not pruned. `pruned`: (C, S) bool, False at the cold start, where masks are all true. `s1`, `s2`: (C, S,
    N_2D) uint8 candidate sets as bits; `cluster`: (C, S, N_2D) int8, -1 without stage 2; `conflict`: (C, S, N_2D) bool;
    `notes`: (C, S, 4) float64 of a soft budget, NaN for other configurations. No margins and no indicators.
    """

    configs: tuple[TriStageConfig, ...]
    shape: Shape
    first_step: int
    keep_2d: Mask
    keep_3d: Mask
    keep_3d_tokens: Mask
    of_tokens: Mask
    pruned: Mask
    s1: npt.NDArray[np.uint8]
    s2: npt.NDArray[np.uint8]
    cluster: npt.NDArray[np.int8]
    conflict: Mask
    notes: npt.NDArray[np.float64]

    def decision(self, config: int, index: int) -> Decision:
        """The decision of configuration number `config` at the step of this `index`: `decide`'s, less its margins."""
        at = config, index
        out = Outcome(
            self.s1[at],
            self.s2[at],
            self.cluster[at],
            self.conflict[at],
            self.keep_2d[at],
            self.keep_3d[at],
            self.keep_3d_tokens[at],
            np.empty(0),
            self.notes[at],
        )
        return decision_of(self.configs[config], self.shape, self.first_step + index, out)


def decide_grid(
    scores: Scores,
    configs: Sequence[TriStageConfig],
    episode_uid: int,
    shape: Shape,
    *,
    first_step: int = 1,
    patch: Patches | None = None,
) -> DecisionGrid:
    """`decide` of every one of `configs` at every step of `scores` (arrays (S, N_2D)), bit for bit, in one call.

    The scores are those of an episode's start, in which every patch was observed at every step, and all configurations
    must have been reduced to them (`config.reduction`). `current`: `first_step` = 1, the scores of steps 1 … S.
    `lagged` with recorded feedback: `first_step` = 2 and the scores of steps 1 … S, which decide steps 2 … S + 1; the
    caller keeps everything at step 1 and at refreshes. `patch`: (S, N_3D) int32, the point tokens' patches in the steps
    that are decided; read by `hard_topk` alone. The draws' seed is each configuration's own.

    What configurations have in common is done once: smoothing (stages, β, k, window, ‖ortho‖₁), k-means, and draws. So
    many configurations cost a few microseconds per step each. The interpreter lock is released: run episodes, or parts
    of a long list of configurations, in threads. The answer takes 6·N_2D bytes per configuration and step.

    Raises ConfigError where a configuration does not fit the shape, and TraceError where the scores do not.
    """
    if scores.norm_2d.ndim != 2:
        raise TraceError("scores of a whole episode are (steps, N_2D); stack those of single steps with Scores.stack")
    if not configs:
        raise ConfigError("no configuration to decide for; give at least one")
    for config in configs:
        check_shape(config, shape)
    steps = len(scores)
    everywhere = check_scores(scores, initial_state(configs[0], shape), None, shape)
    tokens = [bool(shape.n_3d) and counts_tokens(config) for config in configs]
    patches = [point_patches(config, shape, patch, (steps,)) for config in configs if config.budget == "hard_topk"]
    smoothings, order = _places([_smoothing(config) for config in configs])
    rows, _ = _places([(config.seed, config.draw == "sticky") for config in configs])
    draws = np.empty((max(rows) + 1, steps, shape.n_2d))
    for row in range(len(draws)):
        config = configs[rows.index(row)]
        draw_steps(np.uint64(config.seed), np.uint64(episode_uid), first_step, config.draw == "sticky", draws[row])
    out = new_outcome((len(configs), steps), shape.n_2d, shape.n_3d if any(tokens) else 0, margins=False)
    decide_all(
        rules_of([configs[place] for place in order], shape),
        np.array([(place, smoothings[place], rows[place]) for place in order], np.int64),
        memory_of(empty_state(configs[order[0]], shape)),
        seen_of(scores),
        everywhere,
        moving_patches(shape),
        draws,
        first_step,
        max(patches, key=np.size, default=np.zeros((steps, 0), np.int32)),
        new_held(steps, shape.n_2d),
        new_sets(CLUSTERINGS, steps, shape.n_2d),
        out,
    )
    return DecisionGrid(
        configs=tuple(configs),
        shape=shape,
        first_step=first_step,
        keep_2d=out.keep_2d,
        keep_3d=out.keep_3d,
        keep_3d_tokens=out.tokens,
        of_tokens=np.array(tokens),
        pruned=np.array([[is_pruned(config, first_step + index) for index in range(steps)] for config in configs]),
        s1=out.s1,
        s2=out.s2,
        cluster=out.cluster,
        conflict=out.conflict,
        notes=out.notes,
    )


def _smoothing(config: TriStageConfig) -> tuple[Hashable, ...]:
    """What X̂ depends on, beside the scores."""
    stage3 = "s3" in config.stages
    return stage3, config.beta, config.k, config.window, config.ortho, config.clustering, config.moving_view


def _places(keys: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """The number of each of `keys`, equal ones sharing theirs, and the order that brings equal ones together."""
    numbers: dict[Hashable, int] = {}
    places = [numbers.setdefault(key, len(numbers)) for key in keys]
    return places, sorted(range(len(keys)), key=places.__getitem__)
