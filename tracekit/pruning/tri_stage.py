"""The tri-stage pruner (Algorithm 1): smoothing, modality saliency, semantic sets, fusion.

A single decision and a whole episode's run the same compiled stages, so they cannot differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit.errors import TraceError
from tracekit.layout import PATCHES_PER_VIEW
from tracekit.pruning._compile import compiled
from tracekit.pruning.arrays import INDICATORS, MARGINS, Memory, Outcome, Rule, Seen, new_outcome
from tracekit.pruning.base import Decision, DecisionKey, Pruner, Shape, StageTimer, untimed
from tracekit.pruning.scores import Scores
from tracekit.pruning.stages import background_draws, fuse, stage1, stage2
from tracekit.pruning.temporal import smooth
from tracekit.pruning.tri_stage_config import TriStageConfig, check_shape

__all__ = ["TRI_STAGE", "TriStageConfig", "TriStageState", "decide", "decide_episode", "initial_state", "requires"]


@dataclass(frozen=True, slots=True)
class TriStageState:
    """The memory between the steps of an episode, per patch: see `arrays.Memory` for the fields."""

    smoothed: npt.NDArray[np.float64]
    updates: npt.NDArray[np.int64]
    attention: npt.NDArray[np.float64]
    points: npt.NDArray[np.int32]
    window: npt.NDArray[np.float64]

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Plain arrays by name, as a trace recorded while pruning stores them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> TriStageState:
        """Inverse of `to_arrays`."""
        return cls(**{field.name: np.asarray(arrays[field.name]) for field in fields(cls)})


def initial_state(config: TriStageConfig, shape: Shape) -> TriStageState:
    """The state before step 1; raises ConfigError where the configuration does not fit the policy's shape."""
    check_shape(config, shape)
    window = config.k if config.window == "window_mean" else 0
    return TriStageState(
        smoothed=np.zeros((len(INDICATORS), shape.n_2d)),
        updates=np.zeros(shape.n_2d, np.int64),
        attention=np.zeros((2, shape.n_2d)),
        points=np.zeros(shape.n_2d, np.int32),
        window=np.zeros((window, len(INDICATORS), shape.n_2d)),
    )


def requires(_config: TriStageConfig) -> frozenset[str]:
    """Fields of `Scores` that are read."""
    return frozenset(field.name for field in fields(Scores))


def decide(
    scores: Scores | None,
    state: TriStageState,
    config: TriStageConfig,
    key: DecisionKey,
    shape: Shape,
    *,
    observed: npt.NDArray[np.bool_] | None = None,
    patch: npt.NDArray[np.int32] | None = None,  # noqa: ARG001  # the seam of every pruner; only a token budget reads it
    stage: StageTimer = untimed,
) -> tuple[Decision, TriStageState]:
    """Algorithm 1 at step `key.step`, from the scores of this step (`current`) or of the one before (`lagged`).

    `scores`: None where nothing has been observed yet; then nothing is pruned. `observed` (N_2D,) bool: the patches whose
    tokens had all been kept when the scores were taken; the others hold what is known of them, and the attention of
    the observed is rescaled. None: nothing had been pruned. Raises TraceError if scores and shape disagree.
    """
    if scores is None:
        return _everything(shape), state
    everywhere = _check(scores, state, observed, shape)
    memory = Memory(*(getattr(state, field.name).copy() for field in fields(state)))
    rule, out = _rule(config, shape), new_outcome(shape.n_2d)
    with stage("stage3"):
        smooth(rule, memory, _seen(scores), everywhere, observed is not None, _unsmoothed(config, shape))
    with stage("stage1"):
        stage1(rule, memory, rule.tau_2d, rule.tau_3d, out)
    with stage("stage2"):
        draws = np.empty(shape.n_2d)
        background_draws(np.uint64(key.seed), np.uint64(key.episode_uid), _drawn_at(config, key.step), draws)
        stage2(rule, memory, draws, out)
    with stage("fuse"):
        fuse(rule, out)
        decision = _decision(config, shape, out, key.step)
    return decision, TriStageState(*memory)


def decide_episode(
    scores: Scores,
    config: TriStageConfig,
    key: DecisionKey,
    shape: Shape,
    *,
    state: TriStageState | None = None,
    observed: npt.NDArray[np.bool_] | None = None,
) -> tuple[list[Decision], TriStageState]:
    """`decide` for every step of `scores` (arrays (steps, N_2D)) in one compiled loop, from step `key.step` on.

    `state`: before the first of these steps, None at the start of an episode. `observed`: (steps, N_2D) bool or None.
    Releases the interpreter lock, so that episodes and configurations can run in threads.
    """
    state = initial_state(config, shape) if state is None else state
    everywhere = _check(scores, state, observed, shape)
    memory = Memory(*(getattr(state, field.name).copy() for field in fields(state)))
    out = new_outcome(len(scores), shape.n_2d)
    _run(
        _rule(config, shape),
        memory,
        _seen(scores),
        everywhere,
        observed is not None,
        _unsmoothed(config, shape),
        np.uint64(key.seed),
        np.uint64(key.episode_uid),
        key.step,
        config.draw == "sticky",
        out,
    )
    decisions = [
        _decision(config, shape, Outcome(*(array[index] for array in out)), key.step + index)
        for index in range(len(scores))
    ]
    return decisions, TriStageState(*memory)


@compiled
def _run(
    rule: Rule,
    memory: Memory,
    seen: Seen,
    observed: npt.NDArray[np.bool_],
    rescale: bool,
    unsmoothed: npt.NDArray[np.bool_],
    seed: int,
    episode_uid: int,
    first_step: int,
    sticky: bool,
    out: Outcome,
) -> None:
    draws = np.empty(unsmoothed.size)
    for t in range(observed.shape[0]):
        now = Seen(
            seen.norm_2d[t],
            seen.norm_3d[t],
            seen.attention_2d[t],
            seen.attention_3d[t],
            seen.ortho_3d[t],
            seen.points[t],
        )
        here = Outcome(
            out.s1[t],
            out.s2[t],
            out.cluster[t],
            out.conflict[t],
            out.keep_2d[t],
            out.keep_3d[t],
            out.margins[t],
        )
        smooth(rule, memory, now, observed[t], rescale, unsmoothed)
        stage1(rule, memory, rule.tau_2d, rule.tau_3d, here)
        background_draws(seed, episode_uid, 1 if sticky else first_step + t, draws)
        stage2(rule, memory, draws, here)
        fuse(rule, here)


def _everything(shape: Shape) -> Decision:
    """Nothing has been seen, so nothing is pruned and no threshold was tested."""
    return Decision(
        keep_2d=np.ones(shape.n_2d, np.bool_),
        keep_3d_patches=np.ones(shape.n_2d, np.bool_) if shape.n_3d else None,
        pruned=False,
    )


def _decision(config: TriStageConfig, shape: Shape, out: Outcome, step: int) -> Decision:
    pruned = step >= (config.prune_from if "s3" in config.stages else 1)
    keep_2d = out.keep_2d if pruned else np.ones_like(out.keep_2d)
    keep_3d = out.keep_3d if pruned else np.ones_like(out.keep_3d)
    by_index = config.reduction.correspondence == "index"
    clustered = "s2" in config.stages
    return Decision(
        keep_2d=keep_2d,
        keep_3d_patches=keep_3d if shape.n_3d and not by_index else None,
        keep_3d_tokens=keep_3d[: shape.n_3d] if shape.n_3d and by_index else None,
        unprojected=config.unprojected_points if pruned and config.modalities != "2d" else "keep",
        pruned=pruned,
        s1=out.s1,
        s2=out.s2,
        cluster=out.cluster if clustered else None,
        conflict=out.conflict,
        margins=dict(zip(MARGINS, out.margins, strict=True)),
    )


def _drawn_at(config: TriStageConfig, step: int) -> int:
    return 1 if config.draw == "sticky" else step


def _seen(scores: Scores) -> Seen:
    return Seen(*(np.ascontiguousarray(getattr(scores, name)) for name in Seen._fields))


def _unsmoothed(config: TriStageConfig, shape: Shape) -> npt.NDArray[np.bool_]:
    """(N_2D,) patches whose indicators are not smoothed: those of views whose camera moves."""
    if config.moving_view == "on":
        return np.zeros(shape.n_2d, np.bool_)
    moving = np.repeat(np.array(shape.moving, np.bool_), PATCHES_PER_VIEW)
    return np.concatenate([moving, np.zeros(max(shape.n_2d - moving.size, 0), np.bool_)])[: shape.n_2d]


def _check(
    scores: Scores, state: TriStageState, observed: npt.NDArray[np.bool_] | None, shape: Shape
) -> npt.NDArray[np.bool_]:
    """`observed`, or all true; raises TraceError where the arrays do not fit each other."""
    if scores.norm_2d.shape[-1] != shape.n_2d or state.updates.shape != (shape.n_2d,):
        raise TraceError(
            f"scores are of {scores.norm_2d.shape[-1]} patches and the state of {state.updates.size}, the policy has "
            f"{shape.n_2d}; the trace belongs to another policy"
        )
    if observed is None:
        return np.ones(scores.norm_2d.shape, np.bool_)
    first = observed.reshape(-1, observed.shape[-1])[0]
    if observed.shape != scores.norm_2d.shape or not (first | (state.updates > 0)).all():
        raise TraceError(
            f"observed is of shape {observed.shape}: it must be that of the scores, {scores.norm_2d.shape}, and the first "
            "step of an episode must observe every patch"
        )
    return np.ascontiguousarray(observed, np.bool_)


def _rule(config: TriStageConfig, shape: Shape) -> Rule:
    return Rule(
        s1="s1" in config.stages,
        s2="s2" in config.stages,
        s3="s3" in config.stages,
        prune_2d=config.modalities != "3d",
        prune_3d=config.modalities != "2d",
        has_points=shape.n_3d > 0,
        tau_2d=float(config.tau_2d),
        tau_3d=float(config.tau_3d),
        beta=float(config.beta),
        k=int(config.k),
        window_mean=config.window == "window_mean",
        clamp=config.ortho == "clamp",
        separate=config.clustering == "separate",
        smoothed_clusters=config.cluster_input == "smoothed",
        inverse=config.cluster_order == "inverse",
        baseline=_choice(config, "baseline"),
        quantiles=config.object_rule == "quantiles",
        object_2d_min=float(config.object_2d_min),
        object_3d_max=float(config.object_3d_max),
        background_rate=float(config.background_rate),
        draw=_choice(config, "draw"),
        robot_keeps_2d=config.robot_empty == "keep_2d",
        protect=_choice(config, "protect"),
    )


def _choice(config: TriStageConfig, name: str) -> int:
    """Position of an option's value among its choices, in the order that the compiled stages count them."""
    orders = {
        "baseline": ("with_points", "all_patches", "per_set"),
        "draw": ("step", "sticky", "stratified"),
        "protect": ("none", "object_2d", "all_2d"),
    }
    return orders[name].index(getattr(config, name))


TRI_STAGE = Pruner(
    kind="tri_stage",
    config=TriStageConfig,
    observes="forward",
    reads="scores",
    requires=requires,
    initial_state=initial_state,
    decide=decide,
    needs_pinned_fps=lambda config: config.reduction.correspondence == "index" or config.budget == "hard_topk",
)
