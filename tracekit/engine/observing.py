"""What a step takes out of its forward passes: for the recording, for the pruner, and nothing besides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from tracekit.actions import ActionSpec
from tracekit.capture import GROUPS, AttentionTap, CaptureSpec
from tracekit.config import Configuration
from tracekit.errors import ConfigError
from tracekit.observation import Observation
from tracekit.pruning import Observables

__all__ = ["from_sensors", "needed_capture", "observables_of", "spread_attention", "translation_m"]

_TAKEN: dict[str, dict[str, Any]] = {
    "last_row": {"last_row": True},
    "qk_text_layer0": {"qk_text_layer0": True},
    "mean_all_rows": {"mean_all_rows": True},
    "attention": {"groups": ("text", "state", "action"), "layers": "all"},
}
_GIVEN = {"patch", "nearest_patch", "embeddings", "centres", "images", "displacement_m", "kept"}
"""Parts that come with the observation, the encoders or the run, and need no tap."""


def needed_capture(config: Configuration) -> CaptureSpec:
    """The least that the configured pruner must be shown of pass 0.

    Raises ConfigError naming a part that no forward pass can show in time: later passes run under the decision.
    """
    asks: dict[str, Any] = {
        "name": config.kind,
        "groups": (),
        "layers": (0,),
        "norms": (),
        "later_action_rows": False,
        "last_row": False,
        "qk_text_layer0": False,
        "embeddings": "none",
    }
    if config.method.reads == "scores":
        reduction = config.reduction
        layers = reduction.layers if isinstance(reduction.layers, str) else tuple(sorted(reduction.layers))
        return CaptureSpec(
            **{**asks, "groups": _ordered(reduction.groups), "layers": layers, "norms": (reduction.feature,)}
        )
    for name in sorted(config.method.requires(config.pruner)):
        if name == "norms":
            asks["norms"] = ("prenorm", "postnorm")
        elif name == "attention_action" and config.method.observes == "in_network":
            asks["later_action_rows"] = True  # read when the step is over
        elif name in _TAKEN:
            asks |= _TAKEN[name]
        elif name == "embeddings":
            asks["embeddings"] = "first_pass"
        elif name not in _GIVEN:
            raise ConfigError(
                f"pruner {config.kind!r} needs observables {name!r}, which pass 0 of a step cannot show; take its "
                "decisions from a recording that has them (replay.replay_decisions)"
            )
    return CaptureSpec(**asks)


def observables_of(
    tap: AttentionTap,
    patch: npt.NDArray[np.int32] | None,
    *,
    nearest_patch: npt.NDArray[np.int32] | None = None,
    kept: npt.NDArray[np.bool_] | None = None,
    centres: npt.NDArray[np.float32] | None = None,
    embeddings: npt.NDArray[np.float32] | None = None,
    sensed: Mapping[str, Any] | None = None,
) -> Observables:
    """What a tapped pass 0 shows. Layers and heads that were not taken are NaN, which no pruner accepts.

    `patch`: (N_3D,) of its point tokens, None without points, and `nearest_patch` where it is known; `kept`:
    (N_visual,), None for all; `centres`: (N_3D, 3); `embeddings`: (N_visual, D); `sensed`: see `from_sensors`.
    """
    rows, extras, last_row = tap.attention, tap.extras, tap.last_row
    attention = _NOTHING if rows is None else spread_attention(rows.numpy(), tap.layers, tap.heads, tap.size)
    return Observables(
        norms={feature: norms.numpy() for feature, norms in tap.norms.items()},
        attention=attention,
        groups=tap.groups,
        patch=patch,
        nearest_patch=nearest_patch,
        last_row=None if last_row is None else last_row.numpy(),
        mean_all_rows=_numpy(extras.get("mean_all_rows")),
        qk_text_layer0=_numpy(extras.get("qk_text_layer0")),
        embeddings=embeddings,
        centres=centres,
        kept=None if kept is None or bool(kept.all()) else kept,
        **(sensed or {}),
    )


def spread_attention(
    taken: npt.NDArray[np.float32], layers: Sequence[int], heads: Sequence[int], size: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """(layers, heads, …) of `size` from the part (l, h, …) that was taken, NaN elsewhere; itself if it is all."""
    if (len(layers), len(heads)) == size:
        return taken
    out = np.full((*size, *taken.shape[2:]), np.nan, np.float32)
    out[np.ix_(layers, heads)] = taken
    return out


def from_sensors(
    config: Configuration, observation: Observation, views: Sequence[str], displacement_m: float | None
) -> dict[str, Any]:
    """`images` (views, H, W, 3) uint8 and `displacement_m`, where the configured pruner requires them.

    Raises ConfigError where the views' images differ in size.
    """
    required = config.method.requires(config.pruner) if config.method.reads == "observables" else frozenset()
    found: dict[str, Any] = {}
    if "images" in required:
        images = [observation.images[view] for view in views if view in observation.images]
        if len({image.shape for image in images}) > 1:
            raise ConfigError(
                f"pruner {config.kind!r} looks at all images together, and those of {', '.join(views)} differ in size; "
                "give them one size"
            )
        found["images"] = np.stack(images) if images else None
    if "displacement_m" in required:
        found["displacement_m"] = displacement_m
    return found


def translation_m(
    spec: ActionSpec, executed: npt.NDArray[np.floating[Any]], state: npt.NDArray[np.floating[Any]]
) -> float:
    """Length in metres of the translation of an `executed` action (A,) or chunk (T, A) from `state` (S,)."""
    steps = np.atleast_2d(np.asarray(executed, np.float64))[:, :3]
    moved = steps.sum(0) if spec.translation == "delta" else steps[-1] - np.asarray(state, np.float64)[:3]
    return float(np.sqrt((moved * moved).sum()))


_NOTHING = np.zeros((0, 0, 0, 0), np.float32)


def _ordered(groups: Sequence[str]) -> tuple[Any, ...]:
    return tuple(group for group in GROUPS if group in groups)


def _numpy(values: Tensor | None) -> Any:
    return None if values is None else values.float().numpy()
