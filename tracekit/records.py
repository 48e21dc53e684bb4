"""One control step as named arrays of a trace, and back: the recorder writes through this module, the replay reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit import keys
from tracekit.actions import ActionSpec
from tracekit.camera import Camera
from tracekit.capture import CaptureSpec
from tracekit.engine import StepDraws, StepResult, decision_shape
from tracekit.observation import Observation
from tracekit.profiling import STAGES
from tracekit.pruning import Reduction, Scores, reduce
from tracekit.store import ArraySpec, Episode

__all__ = ["Field", "field", "recorded_draws", "recorded_observation", "recorded_scores", "step_fields"]

SCORE_NAMES = ("norm_2d", "norm_3d", "attention_2d", "attention_3d", "ortho_3d", "points")


@dataclass(frozen=True, slots=True)
class Field:
    """One array of one step, with its declaration."""

    spec: ArraySpec
    value: npt.NDArray[Any]


def step_fields(
    observation: Observation,
    result: StepResult,
    draws: StepDraws,
    capture: CaptureSpec,
    action_spec: ActionSpec,
    reduction: Reduction,
) -> dict[str, Field]:
    """Key -> array of everything that one control step leaves behind (the executed action and the phase excepted)."""
    return {
        **_observation_fields(observation, action_spec),
        **_token_fields(result, draws, capture),
        **_observable_fields(result),
        **_score_fields(result, reduction),
        **_action_fields(result, draws, action_spec),
        **_timing_fields(result),
        **{keys.generator(name): field(state, "uint8", "byte") for name, state in draws.generators.items()},
    }


def field(
    value: npt.ArrayLike, dtype: str, axes: str = "", unit: str = "1", *, optional: bool = False, **attributes: Any
) -> Field:
    """`value` as an array of `dtype`, declared with its axes (names separated by blanks), unit and attributes."""
    array = np.asarray(value, dtype)
    names = tuple(axes.split())
    return Field(
        ArraySpec(dtype=dtype, shape=array.shape, axes=names, unit=unit, optional=optional, attributes=attributes),
        array,
    )


def _observation_fields(observation: Observation, spec: ActionSpec) -> dict[str, Field]:
    fields = {
        keys.STATE: field(
            observation.state, "float64", "state", "per dimension", names=spec.names, units=spec.units, frame=spec.frame
        )
    }
    for view, image in observation.images.items():
        fields[keys.image(view)] = field(image, "uint8", "row column channel", "1", colour="RGB")
    if observation.points is not None:
        fields[keys.POINTS] = field(observation.points, "float32", "point xyz", "m", frame=spec.frame)
    for view, depth in observation.depth.items():
        fields[keys.depth(view)] = field(
            depth, "float32", "row column", "m", optional=True, along="optical axis", missing=0.0
        )
    for view, segmentation in observation.segmentation.items():
        fields[keys.segmentation(view)] = field(
            segmentation, "uint8", "row column", optional=True, names=["background", "robot", "target", "other"]
        )
    for sensor, stamp in observation.time_ns.items():
        fields[keys.time_ns(sensor)] = field(stamp, "int64", "", "ns", clock="monotonic")
    return fields


def _token_fields(result: StepResult, draws: StepDraws, capture: CaptureSpec) -> dict[str, Field]:
    fields = {
        keys.TEXT_IDS: field(result.text_ids, "int64", "text_token"),
        keys.FPS_STARTS: field(draws.fps_starts, "int64", "pass stage"),
        keys.ROWS_DIGEST: field(
            np.stack([np.frombuffer(record.rows_digest, np.uint8) for record in result.encoded]),
            "uint8",
            "pass byte",
            hash="sha256",
        ),
    }
    centres = [record.centres for record in result.encoded if record.centres is not None]
    patches = [record.patch for record in result.encoded if record.patch is not None]
    if centres and patches:
        fields[keys.POINT_CENTRES] = field(np.stack(centres), "float32", "pass token xyz", "m")
        fields[keys.POINT_PATCH] = field(
            np.stack(patches), "int32", "pass token", "256·view + 16·row + column; -1 none"
        )
    wanted = {"none": 0, "first_pass": 1, "all_passes": len(result.encoded)}[capture.embeddings]
    rows = [record.rows for record in result.encoded[:wanted] if record.rows is not None]
    if rows:
        fields[keys.ROWS] = field(np.stack(rows), "float32", "pass token width", optional=True)
    return fields


def _observable_fields(result: StepResult) -> dict[str, Field]:
    seen = result.observables
    if seen is None:
        return {}
    fields = {
        keys.norms(name): field(norms[None], "float32", "pass token", optional=True)
        for name, norms in seen.norms.items()
    }
    fields[keys.ATTENTION] = field(
        seen.attention[None],
        "float32",
        "pass layer head query_group token",
        optional=True,
        query_groups=list(seen.groups),
    )
    if result.action_rows is not None:
        fields[keys.ATTENTION_ACTION] = field(
            result.action_rows, "float32", "pass layer token", optional=True, heads="mean"
        )
    return fields


def _score_fields(result: StepResult, reduction: Reduction) -> dict[str, Field]:
    if result.observables is None:
        return {}
    scores = reduce(result.observables, reduction, decision_shape(result.layout))
    return {
        keys.score(reduction.digest, name): field(
            getattr(scores, name),
            "int32" if name == "points" else "float32",
            "patch",
            optional=True,
            reduction=reduction.digest,
        )
        for name in SCORE_NAMES
    }


def _action_fields(result: StepResult, draws: StepDraws, spec: ActionSpec) -> dict[str, Field]:
    return {
        keys.ACTION_NOISE: field(draws.noise, "float32", "chunk action"),
        keys.ACTION_SAMPLES: field(result.samples, "float32", "pass chunk action", "normalised", optional=True),
        keys.ACTION_POLICY: field(
            result.action, "float64", "chunk action", "per dimension", optional=True, names=spec.names, units=spec.units
        ),
    }


def _timing_fields(result: StepResult) -> dict[str, Field]:
    return {
        keys.STAGES_NS: field(result.times_ns, "int64", "stage pass", "ns", optional=True, stages=list(STAGES)),
        keys.WALL_NS: field(result.wall_ns, "int64", "", "ns", optional=True),
    }


def recorded_observation(episode: Episode, step: int, cameras: Mapping[str, Camera]) -> Observation:
    """The observation of `step` (0-based) as the policy saw it; raises TraceError if the trace lacks a part."""
    prefix = "observation/images/"
    views = [key.removeprefix(prefix) for key in episode.keys() if key.startswith(prefix)]  # noqa: SIM118  # an episode is no dict
    order = [view for view in episode.info.attributes.get("views", views) if view in views]
    return Observation(
        images={view: episode.read(keys.image(view), step) for view in order},
        points=episode.read(keys.POINTS, step) if keys.POINTS in episode else None,
        state=episode.read(keys.STATE, step),
        instruction=episode.info.instruction,
        cameras=cameras,
    )


def recorded_draws(episode: Episode, step: int) -> StepDraws:
    """The random inputs of `step` (0-based)."""
    return StepDraws(noise=episode.read(keys.ACTION_NOISE, step), fps_starts=episode.read(keys.FPS_STARTS, step))


def recorded_scores(episode: Episode, step: int, reduction: Reduction) -> Scores:
    """The scores of `step` (0-based) under `reduction`; raises TraceError if they were not stored."""
    values = {name: episode.read(keys.score(reduction.digest, name), step) for name in SCORE_NAMES}
    return Scores(**values)
