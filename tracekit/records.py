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
from tracekit.capture.spec import chosen
from tracekit.engine import StepDraws, StepResult, decision_shape, spread_attention, translation_m
from tracekit.errors import TraceError
from tracekit.layout import TokenLayout
from tracekit.observation import Observation
from tracekit.profiling import STAGES
from tracekit.pruning import Observables, Reduction, Scores, reduce
from tracekit.store import ArraySpec, Episode

__all__ = [
    "Field",
    "field",
    "recorded_displacement_m",
    "recorded_draws",
    "recorded_observables",
    "recorded_observation",
    "recorded_scores",
    "recorded_step_number",
    "step_fields",
]

SCORE_NAMES = ("norm_2d", "norm_3d", "attention_2d", "attention_3d", "ortho_3d", "points")


@dataclass(frozen=True, slots=True)
class Field:
    """One array of one step, with its declaration; None: declared for steps to come, and absent in this one."""

    spec: ArraySpec
    value: npt.NDArray[Any] | None


def step_fields(
    observation: Observation,
    result: StepResult,
    draws: StepDraws,
    capture: CaptureSpec,
    reduction: Reduction,
) -> dict[str, Field]:
    """Key -> array of everything that one control step leaves behind (the executed action and the phase excepted)."""
    return {
        **_observation_fields(observation),
        **_token_fields(result, draws, capture),
        **_observable_fields(result, capture),
        **_score_fields(result, capture, reduction),
        **_action_fields(result, draws),
        **_timing_fields(result),
        **{keys.generator(name): field(state, "uint8", "byte") for name, state in draws.generators.items()},
    }


def field(value: npt.ArrayLike, dtype: str, axes: str = "", *, optional: bool = False, **attributes: Any) -> Field:
    """`value` as an array of `dtype`, declared with its axes (names separated by blanks) and attributes.

    Its unit and frame come from `tracekit.quantities`, when it is declared to a store.
    """
    array = np.asarray(value, dtype)
    names = tuple(axes.split())
    return Field(
        ArraySpec(dtype=dtype, shape=array.shape, axes=names, optional=optional, attributes=attributes),
        array,
    )


def _observation_fields(observation: Observation) -> dict[str, Field]:
    fields = {keys.STATE: field(observation.state, "float64", "state")}
    for view, image in observation.images.items():
        fields[keys.image(view)] = field(image, "uint8", "row column channel", colour="RGB")
    if observation.points is not None:
        fields[keys.POINTS] = field(observation.points, "float32", "point xyz")
    for view, depth in observation.depth.items():
        fields[keys.depth(view)] = field(
            depth, "float32", "row column", optional=True, along="optical axis", missing=0.0
        )
    for view, segmentation in observation.segmentation.items():
        fields[keys.segmentation(view)] = field(
            segmentation, "uint8", "row column", optional=True, names=["background", "robot", "target", "other"]
        )
    for sensor, stamp in observation.time_ns.items():
        fields[keys.time_ns(sensor)] = field(stamp, "int64", clock="monotonic")
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
        fields[keys.POINT_CENTRES] = field(np.stack(centres), "float32", "pass token xyz")
        fields[keys.POINT_PATCH] = field(np.stack(patches), "int32", "pass token")
    wanted = {"none": 0, "first_pass": 1, "all_passes": len(result.encoded)}[capture.embeddings]
    rows = [record.rows for record in result.encoded[:wanted] if record.rows is not None]
    if rows:
        fields[keys.ROWS] = field(np.stack(rows), "float32", "pass token width", optional=True)
    return fields


def _observable_fields(result: StepResult, capture: CaptureSpec) -> dict[str, Field]:
    seen = result.observables
    if seen is None:
        return {}
    fields = {
        keys.norms(name): field(norms[None], "float32", "pass token", optional=True)
        for name, norms in seen.norms.items()
        if name in capture.norms
    }
    layers, heads = (seen.attention.shape[axis] for axis in (0, 1))
    own = chosen(capture.layers, layers, "layers"), chosen(capture.heads, heads, "heads")
    places = [place for place, group in enumerate(seen.groups) if group in capture.groups]
    if places:
        whole = (len(own[0]), len(own[1]), len(places)) == seen.attention.shape[:3]
        rows = seen.attention if whole else seen.attention[np.ix_(*own, places)]
        fields[keys.ATTENTION] = field(
            rows[None],
            "float32",
            "pass layer head query_group token",
            optional=True,
            query_groups=[seen.groups[place] for place in places],
            layers=own[0],
            heads=own[1],
            size=[layers, heads],
        )
    if result.action_rows is not None:
        fields[keys.ATTENTION_ACTION] = field(
            result.action_rows, "float32", "pass layer token", optional=True, heads="mean"
        )
    for key, values, axes, kept in (
        (keys.LAST_ROW, seen.last_row, "pass layer token", capture.last_row),
        (keys.MEAN_ALL_ROWS, seen.mean_all_rows, "pass layer token", capture.mean_all_rows),
        (keys.QK_TEXT_LAYER0, seen.qk_text_layer0, "pass token", capture.qk_text_layer0),
    ):
        if values is not None and kept:
            fields[key] = field(values[None], "float32", axes, optional=True, heads="mean")
    return fields | _extra_fields(result, capture)


def _extra_fields(result: StepResult, capture: CaptureSpec) -> dict[str, Field]:
    """What no pruner reads: entropies, maps, hidden states."""
    extras, fields = result.extras, {}
    if "attention_entropy" in extras and capture.attention_entropy:
        values = extras["attention_entropy"][None]
        fields[keys.ATTENTION_ENTROPY] = field(values, "float32", "pass layer", optional=True, heads="mean")
    if "maps" in extras:
        layers = chosen(capture.maps, len(result.hooks_ns), "layers") if result.hooks_ns is not None else []
        fields[keys.ATTENTION_MAPS] = field(
            extras["maps"][None], "float16", "pass layer head row column", optional=True, layers=layers
        )
    for site in capture.hidden:
        if f"hidden/{site}" in extras and result.hooks_ns is not None:
            fields[keys.hidden(site)] = field(
                extras[f"hidden/{site}"][None],
                "float32",
                "pass layer token width",
                optional=True,
                layers=chosen(capture.hidden_layers, len(result.hooks_ns), "layers"),
            )
    return fields


def _score_fields(result: StepResult, capture: CaptureSpec, reduction: Reduction) -> dict[str, Field]:
    """Scores of `reduction`, where the capture takes what it reads; absent in steps in which that is not finite."""
    seen = result.observables
    if seen is None or not _covers(capture, reduction, seen):
        return {}
    layers = _layers_of(reduction, len(seen.attention))
    numbers = (seen.norms[reduction.feature], seen.attention[layers])
    fed = slice(None) if seen.kept is None else seen.kept
    shape = decision_shape(result.layout)
    finite = all(bool(np.isfinite(values[..., fed]).all()) for values in numbers)
    scores = reduce(seen, reduction, shape) if finite else None
    return {
        keys.score(reduction.digest, name): Field(
            ArraySpec(
                dtype="int32" if name == "points" else "float32",
                shape=(shape.n_2d,),
                axes=("patch",),
                optional=True,
                attributes={"reduction": reduction.digest},
            ),
            None if scores is None else getattr(scores, name),
        )
        for name in SCORE_NAMES
    }


def _covers(capture: CaptureSpec, reduction: Reduction, seen: Observables) -> bool:
    taken = chosen(capture.layers, len(seen.attention), "layers")
    return (
        {*reduction.groups} <= {*seen.groups} & {*capture.groups}
        and reduction.feature in capture.norms
        and capture.heads == "all"
        and {*_layers_of(reduction, len(seen.attention))} <= {*taken}
    )


def _layers_of(reduction: Reduction, count: int) -> list[int]:
    return chosen(reduction.layers, count, "layers")


def _action_fields(result: StepResult, draws: StepDraws) -> dict[str, Field]:
    return {
        keys.ACTION_NOISE: field(draws.noise, "float32", "chunk action"),
        keys.ACTION_SAMPLES: field(result.samples, "float32", "pass chunk action", optional=True),
        keys.ACTION_POLICY: field(result.action, "float64", "chunk action", optional=True),
    }


def _timing_fields(result: StepResult) -> dict[str, Field]:
    hooks = {}
    if result.hooks_ns is not None:
        hooks[keys.CAPTURE_HOOKS_NS] = field(result.hooks_ns, "int64", "layer", optional=True)
    return {
        keys.STAGES_NS: field(result.times_ns, "int64", "stage pass", optional=True, stages=list(STAGES)),
        keys.WALL_NS: field(result.wall_ns, "int64", optional=True),
        keys.CAPTURE_REDUCTION_NS: field(result.reduction_ns, "int64", optional=True),
        **hooks,
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


def recorded_step_number(episode: Episode, step: int) -> int:
    """The 1-based control step that row `step` (0-based) is; they differ where steps were dropped or left out."""
    return int(episode.read(keys.STEP_NUMBER, step)) if keys.STEP_NUMBER in episode else step + 1


def recorded_displacement_m(episode: Episode, step: int, spec: ActionSpec) -> float | None:
    """Length in metres of the translation executed before `step` (0-based); None before the first.

    Raises TraceError if the executed actions were not recorded, or that of the step before was dropped.
    """
    number = recorded_step_number(episode, step)
    if number == 1:
        return None
    if step == 0 or recorded_step_number(episode, step - 1) != number - 1:
        raise TraceError(
            f"episode {episode.info.id!r}: what was executed before control step {number} was not recorded, and the "
            "pruner reads it; record without dropping steps"
        )
    return translation_m(spec, episode.read(keys.ACTION_EXECUTED, step - 1), episode.read(keys.STATE, step - 1))


def recorded_observables(episode: Episode, step: int, required: frozenset[str], spec: ActionSpec) -> Observables:
    """The observables of `step` (0-based) that are `required` (fields of `Observables`), and those that go with them.

    `spec`: of the recorded actions. Raises TraceError naming the first one that the trace lacks.
    """

    def get(name: str, key: str) -> npt.NDArray[Any] | None:
        if name not in required:
            return None
        if key not in episode:
            raise TraceError(
                f"the pruner needs observables {name!r}, and episode {episode.info.id!r} has no {key!r}; record with "
                "`--capture baselines`, which has all that the shipped pruners need"
            )
        return episode.read(key, step)

    layout = TokenLayout.from_json(episode.info.attributes["layout"])
    taken, groups = get("attention", keys.ATTENTION), ()
    attention = np.zeros((0, 0, 0, len(layout.visual_positions)), np.float32)
    if taken is not None:
        about = episode.spec(keys.ATTENTION).attributes
        groups = tuple(about["query_groups"])
        size = about.get("size", taken.shape[1:3])
        layers, heads = (about.get(name, range(count)) for name, count in zip(("layers", "heads"), size, strict=True))
        attention = spread_attention(taken[0], layers, heads, (size[0], size[1]))
    first = {name: get(name, key) for name, key in _OF_PASS_0.items()}
    has_points = bool(len(layout.point_positions))
    centres = get("centres", keys.POINT_CENTRES) if has_points else None
    patches = episode.read(keys.POINT_PATCH, step) if keys.POINT_PATCH in episode else None
    images = [get("images", keys.image(view)) for view in layout.views] if "images" in required else []
    prefix = "observables/norms/"
    features = [key.removeprefix(prefix) for key in episode.keys() if key.startswith(prefix)]  # noqa: SIM118  # an episode is no dict
    rows = get("embeddings", keys.ROWS)
    return Observables(
        norms={name: episode.read(keys.norms(name), step)[0] for name in features if "norms" in required},
        attention=attention,
        groups=groups,
        patch=None if patches is None else patches[0],
        attention_action=get("attention_action", keys.ATTENTION_ACTION),
        patch_later=None if patches is None or len(patches) < 2 else patches[1:],
        embeddings=None if rows is None else rows[0][layout.visual_positions],
        centres=None if centres is None else centres[0],
        images=np.stack([image for image in images if image is not None]) if images else None,
        displacement_m=recorded_displacement_m(episode, step, spec) if "displacement_m" in required else None,
        kept=_fed(episode, step),
        **{name: None if values is None else values[0] for name, values in first.items()},
    )


def _fed(episode: Episode, step: int) -> npt.NDArray[np.bool_] | None:
    """(N,) visual tokens of pass 0; None for all, as wherever nothing was pruned while recording."""
    kept = episode.read(keys.KEPT, step)[0] if keys.KEPT in episode else None
    return None if kept is None or bool(kept.all()) else kept


_OF_PASS_0 = {
    "last_row": keys.LAST_ROW,
    "mean_all_rows": keys.MEAN_ALL_ROWS,
    "qk_text_layer0": keys.QK_TEXT_LAYER0,
}
