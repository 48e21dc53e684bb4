"""Bytes that a control step leaves in a trace, key by key, from shapes alone: known before anything is run.

The arrays are declared by the code that records them, on a step of zeros that take no memory; so the numbers are those
of the store, before its compression.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit import keys
from tracekit.actions import ActionSpec
from tracekit.capture import CaptureSpec, attention_modules
from tracekit.capture.spec import chosen
from tracekit.engine import Captured, PassRecord, StepDraws, StepResult, decision_shape, spread_attention
from tracekit.layout import TokenLayout
from tracekit.observation import Observation
from tracekit.policy import Policy, Tokens
from tracekit.profiling import STAGES
from tracekit.pruning import Decision, Observables, Reduction
from tracekit.records import step_fields

__all__ = ["StepShapes", "eager_bytes_per_pass", "shapes_of", "step_bytes"]


@dataclass(frozen=True, slots=True)
class StepShapes:
    """What the sizes of a step depend on. `fps_stages`: start indices drawn per pass."""

    layout: TokenLayout
    layers: int
    heads: int
    width: int
    passes: int
    action_shape: tuple[int, int]
    action_spec: ActionSpec
    fps_stages: int


_SCALARS_OF_THE_RECORDER = (
    keys.STEP_NUMBER,
    keys.STEP_START_NS,
    keys.ACTION_TIME_NS,
    keys.QUEUE_WAIT_NS,
    keys.HANDOVER_NS,
    keys.ENCODE_NS,
)


def shapes_of(policy: Policy, tokens: Tokens) -> StepShapes:
    """Of a loaded policy and an observation made ready for it."""
    modules = attention_modules(policy.backbone)
    weight: Any = modules[0].q_proj.weight  # type: ignore[union-attr]  # found by structure
    size: Any = modules[0].head_dim
    rows, width = weight.shape
    return StepShapes(
        layout=tokens.layout,
        layers=len(modules),
        heads=int(rows) // int(size),
        width=int(width),
        passes=policy.passes,
        action_shape=policy.action_shape,
        action_spec=policy.action_spec,
        fps_stages=len(tokens.fps_sizes),
    )


def step_bytes(shapes: StepShapes, observation: Observation, capture: CaptureSpec) -> dict[str, int]:
    """Key -> bytes per control step, largest first, under `reuse = none`; uncompressed."""
    result, draws = _step_of_zeros(shapes, capture)
    fields = step_fields(observation, result, draws, capture, Reduction())
    sizes = {key: item.spec.row_nbytes for key, item in fields.items()}
    sizes |= dict.fromkeys(_SCALARS_OF_THE_RECORDER, 8)
    sizes[keys.ACTION_EXECUTED] = 8 * shapes.action_spec.size
    return dict(sorted(sizes.items(), key=lambda item: (-item[1], item[0])))


def eager_bytes_per_pass(shapes: StepShapes) -> int:
    """Hidden states of all layers (float32) and their attention maps (float16): what hooking everything would cost."""
    length = shapes.layout.length
    hidden = (shapes.layers + 1) * length * shapes.width * 4
    return hidden + shapes.layers * shapes.heads * length * length * 2


def _zeros(dtype: Any, *shape: int) -> npt.NDArray[Any]:
    return np.broadcast_to(np.zeros((), dtype), shape)


def _step_of_zeros(shapes: StepShapes, capture: CaptureSpec) -> tuple[StepResult, StepDraws]:
    layout, layers, passes = shapes.layout, shapes.layers, shapes.passes
    visual, points = len(layout.visual_positions), len(layout.point_positions)
    every = decision_shape(layout)
    f32 = np.float32
    wanted = {"none": 0, "first_pass": 1, "all_passes": passes}[capture.embeddings]
    encoded = [
        PassRecord(
            centres=_zeros(f32, points, 3) if points else None,
            patch=_zeros(np.int32, points) if points else None,
            rows=_zeros(f32, layout.prefix_length, shapes.width) if index < wanted else None,
            digest=bytes(32),
        )
        for index in range(passes)
    ]
    groups = [group for group in capture.groups if len(layout.group_positions(group))]
    taken = (chosen(capture.layers, layers, "layers"), chosen(capture.heads, shapes.heads, "heads"))
    part = _zeros(f32, len(taken[0]), len(taken[1]), len(groups), visual)
    extras: dict[str, npt.NDArray[Any]] = {"attention_entropy": _zeros(f32, layers)}
    maps = len(chosen(capture.maps, layers, "layers"))
    if maps:
        extras["maps"] = _zeros(np.float16, maps, shapes.heads, layout.length, layout.length)
    hidden = len(chosen(capture.hidden_layers, layers, "layers"))
    extras |= {f"hidden/{site}": _zeros(f32, hidden, layout.length, shapes.width) for site in capture.hidden}
    result = StepResult(
        action=_zeros(np.float64, *shapes.action_shape),
        samples=_zeros(f32, passes, *shapes.action_shape),
        kept=_zeros(np.bool_, passes, visual),
        decision=Decision(_zeros(np.bool_, every.n_2d), None),
        pruned_from=passes,
        layout=layout,
        text_ids=_zeros(np.int64, 2 + len(layout.group_positions("text"))),
        memory=None,
        times_ns=_zeros(np.int64, len(STAGES), passes),
        wall_ns=0,
        captured=Captured(
            observables=Observables(
                norms={name: _zeros(f32, visual) for name in capture.norms},
                attention=spread_attention(part, *taken, (layers, shapes.heads)),
                groups=tuple(groups),
                patch=_zeros(np.int32, points) if points else None,
                last_row=_zeros(f32, layers, visual),
                mean_all_rows=_zeros(f32, layers, visual),
                qk_text_layer0=_zeros(f32, visual),
            ),
            action_rows=_zeros(f32, passes - 1, layers, visual) if capture.later_action_rows and passes > 1 else None,
            extras=extras,
            hooks_ns=_zeros(np.int64, layers),
        ),
        encoded=tuple(encoded),
    )
    draws = StepDraws(_zeros(f32, *shapes.action_shape), _zeros(np.int64, passes, shapes.fps_stages))
    return result, draws
