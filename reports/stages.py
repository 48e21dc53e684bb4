"""What each stage of the tri-stage pruner adds: its masks with stage 1 alone, with stages 1 and 2, and with all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from tracekit import keys
from tracekit.config import Configuration
from tracekit.engine import decision_shape, keep_everything
from tracekit.errors import TraceError
from tracekit.layout import TokenLayout
from tracekit.pruning import Decision, DecisionKey, Scores, Shape, point_mask
from tracekit.pruning.tri_stage import TriStageConfig, decide_episode
from tracekit.store import Episode

__all__ = ["StageMasks", "has_stages", "masks_by_stage", "stage_sets"]

Patches = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class StageMasks:
    """What a set of stages decides: `label`, and per step the decision and the point tokens it keeps.

    `kept_3d`: (steps, N_3D) bool of the last denoise pass; `tokens`: (steps, 2) image and point tokens kept, the latter
    as mean over the passes that the decision governs.
    """

    label: str
    decisions: tuple[Decision, ...]
    kept_3d: npt.NDArray[np.bool_]
    tokens: npt.NDArray[np.float64]


def stage_sets(config: Configuration) -> list[tuple[str, tuple[str, ...]]]:
    """(label, stages) of the rows: S1, S1 + S2, and all that the configuration has, without those that it lacks."""
    own = config.pruner.stages
    found: list[tuple[str, tuple[str, ...]]] = []
    for wanted in (("s1",), ("s1", "s2"), ("s1", "s2", "s3")):
        stages = tuple(stage for stage in wanted if stage in own)
        if stages and stages != ("s3",) and all(stages != before for _, before in found):
            found.append((" + ".join(stage.upper() for stage in stages), stages))
    if found and set(found[-1][1]) == {"s1", "s2", "s3"}:
        found[-1] = "all", found[-1][1]
    return found


def has_stages(config: Configuration, stored: Episode) -> bool:
    """Whether `masks_by_stage` can be asked: a tri-stage configuration of more than one row, whose scores are known."""
    if config.kind != "tri_stage" or len(stage_sets(config)) < 2 or "seen/points" not in stored:
        return False
    if config.pruner.reduction.correspondence == "nearest":  # the recording has the patches of projection
        return False
    return bool(stored.present("seen/points").all())


def masks_by_stage(config: Configuration, stored: Episode, recording: Episode) -> list[StageMasks]:
    """The masks of every row of `stage_sets`, from the scores that the replay `stored`.

    All rows decide from what the whole configuration was shown, with its draws and its memory of the steps before; that
    of all stages is what it decided. Raises TraceError if the replay did not store scores at every step, or the
    configuration is not one of the tri-stage pruner.
    """
    if not has_stages(config, stored):
        raise TraceError(
            f"configuration {config.name!r} cannot be shown stage by stage: it has one row only, its scores were not "
            "stored at every step, or its points do not follow the recorded patches; draw it without --stages"
        )
    layout = TokenLayout.from_json(recording.info.attributes["layout"])
    return [_row(config, label, stages, stored, recording, layout) for label, stages in stage_sets(config)]


def _row(
    config: Configuration,
    label: str,
    stages: tuple[str, ...],
    stored: Episode,
    recording: Episode,
    layout: TokenLayout,
) -> StageMasks:
    options: TriStageConfig = replace(config.pruner, stages=stages)
    shape, uid = decision_shape(layout), recording.info.uid
    scores = Scores(**{field.name: stored.read(f"seen/{field.name}") for field in fields(Scores)})
    steps = len(scores)
    patches = np.zeros((steps, 1, 0), np.int32) if not shape.n_3d else recording.read(keys.POINT_PATCH)
    if config.reuse.fps == "pinned":
        patches = np.repeat(patches[:, :1], patches.shape[1], 1)
    decisions = list(_decisions(config, options, scores, stored.read("seen/observed"), patches[:, 0], shape, uid))
    first = 1 if config.observe.mode == "current" else 0
    kept = [
        [
            np.ones(shape.n_3d, bool)
            if not decision.pruned
            else point_mask(
                decision,
                patch,
                0 if config.reuse.fps == "pinned" else first + index,
                DecisionKey(options.seed, uid, step),
            )
            for index, patch in enumerate(patches[step - 1, first:])
        ]
        for step, decision in enumerate(decisions, 1)
    ]
    counts = [
        [float(decision.keep_2d.sum()), float(np.mean([mask.sum() for mask in masks]))]
        for decision, masks in zip(decisions, kept, strict=True)
    ]
    return StageMasks(label, tuple(decisions), np.stack([masks[-1] for masks in kept]), np.array(counts))


def _decisions(
    config: Configuration,
    options: TriStageConfig,
    scores: Scores,
    observed: npt.NDArray[np.bool_],
    patch: Patches,
    shape: Shape,
    uid: int,
) -> Iterator[Decision]:
    """One per step; under `lagged` a step is decided from what the one before showed, and refreshes prune nothing."""
    lag = int(config.observe.mode == "lagged")
    shown = slice(0, len(scores) - lag)
    if lag:
        yield keep_everything(shape)
    if len(scores) == lag:
        return
    found, _ = decide_episode(
        Scores(*(getattr(scores, field.name)[shown] for field in fields(Scores))),
        options,
        DecisionKey(options.seed, uid, 1 + lag),
        shape,
        observed=observed[shown],
        patch=patch[lag:] if shape.n_3d else None,
    )
    for step, decision in enumerate(found, 1 + lag):
        yield keep_everything(shape) if config.refreshes(step) else decision
