"""The tri-stage pruner (Algorithm 1): smoothing, modality saliency, semantic sets, fusion.

A single decision and a whole episode's run the same compiled stages, so they cannot differ.
"""

from __future__ import annotations

from dataclasses import fields
from functools import cache

import numpy as np
import numpy.typing as npt

from tracekit.pruning.along import CLUSTERINGS, conclude, decide_all, draw_steps
from tracekit.pruning.answer import decision_of, everything
from tracekit.pruning.arrays import INDICATORS, MARGINS, Held, Outcome, new_held, new_outcome, new_sets
from tracekit.pruning.base import Decision, DecisionKey, Pruner, Shape, StageTimer, untimed
from tracekit.pruning.rule import moving_patches, rule_of, rules_of
from tracekit.pruning.scores import Scores
from tracekit.pruning.stages import background_draws, cluster, stage1, stage2
from tracekit.pruning.temporal import smooth
from tracekit.pruning.tri_stage_config import TriStageConfig, check_shape, counts_tokens
from tracekit.pruning.tri_stage_state import TriStageState, check_scores, empty_state, memory_of, point_patches, seen_of

__all__ = ["TRI_STAGE", "TriStageConfig", "TriStageState", "decide", "decide_episode", "initial_state", "requires"]

Mask = npt.NDArray[np.bool_]


def initial_state(config: TriStageConfig, shape: Shape) -> TriStageState:
    """The state before step 1; raises ConfigError where the configuration does not fit the policy's shape.

    The first call of a process also compiles the stages (or loads them), so that no decision is timed with that inside.
    """
    check_shape(config, shape)
    _compile_stages()
    return empty_state(config, shape)


@cache
def _compile_stages() -> None:
    """Decide once on a patch without anything in it."""
    config, shape, nothing = TriStageConfig(), Shape(1, 1), np.zeros(1, np.float32)
    scores = Scores(nothing, nothing, nothing, nothing, nothing, np.zeros(1, np.int32))
    decide(scores, empty_state(config, shape), config, DecisionKey(0, 0, 1), shape)


def requires(config: TriStageConfig) -> frozenset[str]:
    """Fields of `Scores` that are read, and `patch` where a budget of tokens needs the points of the step itself."""
    names = frozenset(field.name for field in fields(Scores))
    return names | {"patch"} if config.budget == "hard_topk" else names


def decide(
    scores: Scores | None,
    state: TriStageState,
    config: TriStageConfig,
    key: DecisionKey,
    shape: Shape,
    *,
    observed: Mask | None = None,
    patch: npt.NDArray[np.int32] | None = None,
    stage: StageTimer = untimed,
) -> tuple[Decision, TriStageState]:
    """Algorithm 1 at step `key.step`, from the scores of this step (`current`) or of the one before (`lagged`).

    `scores`: None where nothing has been observed yet; then nothing is pruned. `observed` (N_2D,) bool: the patches
    whose tokens had all been kept when the scores were taken; the others hold what is known of them, and the attention
    of the observed is rescaled. None: all of them. `patch` (N_3D,) int32: patch of every point token of the
    step that is decided, read by `hard_topk` alone. Raises TraceError if scores and shape disagree.
    """
    if scores is None:
        return everything(shape), state
    everywhere = check_scores(scores, state, observed, shape)
    memory, rule = memory_of(state), rule_of(config, shape)
    held = Held(memory.smoothed, memory.attention, memory.points)
    sets, out = new_sets(shape.n_2d), new_outcome((), shape.n_2d, shape.n_3d)
    with stage("stage3"):
        smooth(rule, memory, seen_of(scores), everywhere, moving_patches(shape))
    with stage("stage1"):
        stage1(rule, held, float(config.tau_2d), float(config.tau_3d), out)
    with stage("stage2"):
        draws = np.empty(shape.n_2d)
        drawn_at = 1 if config.draw == "sticky" else key.step
        background_draws(np.uint64(key.seed), np.uint64(key.episode_uid), drawn_at, draws)
        cluster(rule, held, sets)
        stage2(rule, held, sets, draws, out)
    with stage("fuse"):
        conclude(rule, held, draws, key.step, point_patches(config, shape, patch), out)
        decision = decision_of(config, shape, key.step, out, _margins(out.margins), _indicators(held.smoothed))
    return decision, TriStageState(*memory)


def decide_episode(
    scores: Scores,
    config: TriStageConfig,
    key: DecisionKey,
    shape: Shape,
    *,
    state: TriStageState | None = None,
    observed: Mask | None = None,
    patch: npt.NDArray[np.int32] | None = None,
) -> tuple[list[Decision], TriStageState]:
    """`decide` for every step of `scores` (arrays (steps, N_2D)) in one compiled loop, from step `key.step` on.

    `state`: before the first of these steps, None at the start of an episode. `observed`: (steps, N_2D) bool or None;
    `patch`: (steps, N_3D) int32 or None. Releases the interpreter lock, so that threads can run other episodes and
    configurations beside it.
    """
    state = initial_state(config, shape) if state is None else state
    everywhere = check_scores(scores, state, observed, shape)
    memory, steps = memory_of(state), len(scores)
    draws = np.empty((1, steps, shape.n_2d))
    draw_steps(np.uint64(key.seed), np.uint64(key.episode_uid), key.step, config.draw == "sticky", draws[0])
    held, out = new_held(steps, shape.n_2d), new_outcome((1, steps), shape.n_2d, shape.n_3d)
    decide_all(
        rules_of((config,), shape),
        np.zeros((1, 3), np.int64),
        memory,
        seen_of(scores),
        everywhere,
        moving_patches(shape),
        draws,
        key.step,
        point_patches(config, shape, patch, (steps,)),
        held,
        new_sets(CLUSTERINGS, steps, shape.n_2d),
        out,
    )
    decisions = [
        decision_of(
            config,
            shape,
            key.step + index,
            Outcome._make(step),
            _margins(out.margins[0, index]),
            _indicators(held.smoothed[index]),
        )
        for index, step in enumerate(zip(*(array[0] for array in out), strict=True))
    ]
    return decisions, TriStageState(*memory)


def _margins(values: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
    return dict(zip(MARGINS, values, strict=True))


def _indicators(values: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
    return dict(zip(INDICATORS, values, strict=True))


TRI_STAGE = Pruner(
    kind="tri_stage",
    config=TriStageConfig,
    observes="forward",
    reads="scores",
    requires=requires,
    initial_state=initial_state,
    decide=decide,
    needs_pinned_fps=counts_tokens,
)
