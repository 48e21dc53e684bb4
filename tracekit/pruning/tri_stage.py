"""The tri-stage pruner (Algorithm 1): smoothing, modality saliency, semantic sets, fusion.

A single decision and a whole episode's run the same compiled stages, so they cannot differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit.errors import ConfigError, TraceError
from tracekit.pruning._compile import compiled
from tracekit.pruning.arrays import INDICATORS, MARGINS, NOTES, Memory, Outcome, Rule, Seen, new_outcome
from tracekit.pruning.base import Decision, DecisionKey, Pruner, Shape, StageTimer, untimed
from tracekit.pruning.budget import soft_budget, top_images, top_points
from tracekit.pruning.rule import rule_of, unsmoothed_patches
from tracekit.pruning.scores import Scores
from tracekit.pruning.stages import background_draws, fuse, stage1, stage2
from tracekit.pruning.temporal import smooth
from tracekit.pruning.tri_stage_config import TriStageConfig, check_shape

__all__ = ["TRI_STAGE", "TriStageConfig", "TriStageState", "decide", "decide_episode", "initial_state", "requires"]

Mask = npt.NDArray[np.bool_]


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
    """The state before step 1; raises ConfigError where the configuration does not fit the policy's shape.

    The first call of a process also compiles the stages (or loads them), so that no decision is timed with that inside.
    """
    check_shape(config, shape)
    _compile_stages()
    return _empty_state(config, shape)


def _empty_state(config: TriStageConfig, shape: Shape) -> TriStageState:
    window = config.k if config.window == "window_mean" else 0
    return TriStageState(
        smoothed=np.zeros((len(INDICATORS), shape.n_2d)),
        updates=np.zeros(shape.n_2d, np.int64),
        attention=np.zeros((2, shape.n_2d)),
        points=np.zeros(shape.n_2d, np.int32),
        window=np.zeros((window, len(INDICATORS), shape.n_2d)),
    )


@cache
def _compile_stages() -> None:
    """Decide once on a patch without anything in it."""
    config, shape, nothing = TriStageConfig(), Shape(1, 1), np.zeros(1, np.float32)
    scores = Scores(nothing, nothing, nothing, nothing, nothing, np.zeros(1, np.int32))
    decide(scores, _empty_state(config, shape), config, DecisionKey(0, 0, 1), shape)


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
        return _everything(shape), state
    everywhere = _check(scores, state, observed, shape)
    memory = Memory(*(getattr(state, field.name).copy() for field in fields(state)))
    rule, out = rule_of(config, shape), new_outcome(shape.n_2d)
    with stage("stage3"):
        unsmoothed = unsmoothed_patches(config, shape)
        smooth(rule, memory, _seen(scores), everywhere, unsmoothed, out.smoothed)
    with stage("stage1"):
        stage1(rule, memory, rule.tau_2d, rule.tau_3d, out)
    with stage("stage2"):
        draws = np.empty(shape.n_2d)
        drawn_at = 1 if config.draw == "sticky" else key.step
        background_draws(np.uint64(key.seed), np.uint64(key.episode_uid), drawn_at, draws)
        stage2(rule, memory, draws, out)
    with stage("fuse"):
        fuse(rule, out)
        if rule.soft_budget:
            soft_budget(rule, memory, draws, out)
        decision = _decision(config, shape, out, key.step, patch)
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
    if config.budget == "soft":  # its search is not compiled
        return _one_by_one(scores, config, key, shape, state, observed)
    everywhere = _check(scores, state, observed, shape)
    memory = Memory(*(getattr(state, field.name).copy() for field in fields(state)))
    out = new_outcome(len(scores), shape.n_2d)
    _run(
        rule_of(config, shape),
        memory,
        _seen(scores),
        everywhere,
        unsmoothed_patches(config, shape),
        np.uint64(key.seed),
        np.uint64(key.episode_uid),
        key.step,
        config.draw == "sticky",
        out,
    )
    decisions = [
        _decision(config, shape, Outcome._make(step), key.step + index, None if patch is None else patch[index])
        for index, step in enumerate(zip(*out, strict=True))
    ]
    return decisions, TriStageState(*memory)


def _one_by_one(
    scores: Scores, config: TriStageConfig, key: DecisionKey, shape: Shape, state: TriStageState, observed: Mask | None
) -> tuple[list[Decision], TriStageState]:
    decisions: list[Decision] = []
    for index in range(len(scores)):
        at = DecisionKey(key.seed, key.episode_uid, key.step + index)
        flags = None if observed is None else observed[index]
        decision, state = decide(scores.step(index), state, config, at, shape, observed=flags)
        decisions.append(decision)
    return decisions, state


@compiled
def _run(
    rule: Rule,
    memory: Memory,
    seen: Seen,
    observed: Mask,
    unsmoothed: Mask,
    seed: np.uint64,
    episode_uid: np.uint64,
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
            out.smoothed[t],
            out.notes[t],
        )
        smooth(rule, memory, now, observed[t], unsmoothed, here.smoothed)
        stage1(rule, memory, rule.tau_2d, rule.tau_3d, here)
        background_draws(seed, episode_uid, 1 if sticky else first_step + t, draws)
        stage2(rule, memory, draws, here)
        fuse(rule, here)


def _everything(shape: Shape) -> Decision:
    """Nothing has been seen, so nothing is pruned and no threshold was tested."""
    every_patch = np.ones(shape.n_2d, np.bool_)
    return Decision(every_patch, every_patch if shape.n_3d else None, pruned=False)


def _decision(
    config: TriStageConfig, shape: Shape, out: Outcome, step: int, patch: npt.NDArray[np.int32] | None
) -> Decision:
    pruned = step >= (config.prune_from if "s3" in config.stages else 1)
    if pruned:
        keep_2d, keep_3d_patches, keep_3d_tokens = _masks(config, shape, out, patch)
    else:
        keep_2d = np.ones(shape.n_2d, np.bool_)
        keep_3d_patches, keep_3d_tokens = (keep_2d if shape.n_3d else None), None
    return Decision(
        keep_2d=keep_2d,
        keep_3d_patches=keep_3d_patches,
        keep_3d_tokens=keep_3d_tokens,
        unprojected=config.unprojected_points if pruned and config.modalities != "2d" else "keep",
        pruned=pruned,
        s1=out.s1,
        s2=out.s2,
        cluster=out.cluster if "s2" in config.stages else None,
        conflict=out.conflict,
        margins=dict(zip(MARGINS, out.margins, strict=True)),
        indicators=dict(zip(INDICATORS, out.smoothed, strict=True)),
        notes=dict(zip(NOTES, out.notes.tolist(), strict=True)) if config.budget == "soft" else {},
    )


def _masks(
    config: TriStageConfig, shape: Shape, out: Outcome, patch: npt.NDArray[np.int32] | None
) -> tuple[Mask, Mask | None, Mask | None]:
    """Mask_2D, and Mask_3D over patches or over tokens (the other one None; both without points)."""
    if config.budget == "hard_topk":
        keep_2d = out.keep_2d if config.modalities == "3d" else top_images(out, config.rate)
        if not shape.n_3d:
            return keep_2d, None, None
        if config.modalities == "2d":
            return keep_2d, None, np.ones(shape.n_3d, np.bool_)
        if config.reduction.correspondence == "index":
            patch = np.arange(shape.n_3d, dtype=np.int32)
        if patch is None or patch.shape != (shape.n_3d,):
            raise ConfigError(
                "pruner.budget = 'hard_topk' counts point tokens and needs their patches at the step that is decided; "
                "record with a camera, or use budget = 'soft'"
            )
        return keep_2d, None, top_points(out, config.rate, patch)
    if not shape.n_3d:
        return out.keep_2d, None, None
    if config.reduction.correspondence == "index":
        return out.keep_2d, None, out.keep_3d[: shape.n_3d]
    return out.keep_2d, out.keep_3d, None


def _seen(scores: Scores) -> Seen:
    """Copies: strided or read-only arrays would make the compiler specialise the stages anew in the middle of a run."""
    return Seen(*(np.array(getattr(scores, name), order="C") for name in Seen._fields))


def _check(scores: Scores, state: TriStageState, observed: Mask | None, shape: Shape) -> Mask:
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
            f"observed is of shape {observed.shape}: it must be that of the scores, {scores.norm_2d.shape}, and the "
            "first step of an episode must observe every patch"
        )
    return np.array(observed, np.bool_, order="C")


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
