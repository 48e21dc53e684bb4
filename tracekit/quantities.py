"""What every array of a recording means: unit, frame, and the name that LeRobot has for it.

`docs/trace-format.md` shows the table, with shapes and sign conventions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from tracekit import keys
from tracekit.actions import ActionSpec
from tracekit.errors import TraceError
from tracekit.store import ArraySpec

__all__ = ["QUANTITIES", "Quantity", "described", "quantity_of"]

ACTION_FRAME = "action_spec.frame"
"""Stands for the frame that the policy's `ActionSpec` names: `base` or `world`."""

NONE = "none"


@dataclass(frozen=True, slots=True)
class Quantity:
    """`unit` of every entry; `frame` that coordinates are in, `none` where there are none; `lerobot`: key of a
    LeRobotDataset (v3), None where it has no such thing.
    """  # noqa: D205  # one sentence per field

    unit: str
    frame: str = NONE
    lerobot: str | None = None


_NS = Quantity("ns")
_NUMBER = Quantity("1")

QUANTITIES: dict[str, Quantity] = {
    keys.STATE: Quantity("per dimension", ACTION_FRAME, "observation.state"),
    keys.image("*"): Quantity("1/255", "image", "observation.images.*"),
    keys.POINTS: Quantity("m", ACTION_FRAME, "observation.points"),
    keys.depth("*"): Quantity("m", "camera", "observation.depth.*"),
    keys.segmentation("*"): Quantity("class", "image", "observation.segmentation.*"),
    keys.time_ns("*"): _NS,
    keys.PHASE: Quantity("index into the episode's `phases`"),
    keys.STEP_NUMBER: Quantity("control step, from 1", NONE, "frame_index"),
    keys.TEXT_IDS: Quantity("token id"),
    keys.FPS_STARTS: Quantity("index of a candidate point"),
    keys.POINT_CENTRES: Quantity("m", ACTION_FRAME),
    keys.POINT_PATCH: Quantity("256·view + 16·row + column; -1 none", "image"),
    keys.ROWS: _NUMBER,
    keys.ROWS_DIGEST: Quantity("byte"),
    keys.norms("*"): _NUMBER,
    keys.ATTENTION: _NUMBER,
    keys.ATTENTION_ACTION: _NUMBER,
    keys.LAST_ROW: _NUMBER,
    keys.QK_TEXT_LAYER0: _NUMBER,
    keys.MEAN_ALL_ROWS: _NUMBER,
    keys.ATTENTION_ENTROPY: Quantity("nat"),
    keys.ATTENTION_MAPS: _NUMBER,
    keys.hidden("*"): _NUMBER,
    "scores/*/points": Quantity("tokens"),
    "scores/*/*": _NUMBER,
    keys.ACTION_NOISE: Quantity("normalised", "normalised action"),
    keys.ACTION_SAMPLES: Quantity("normalised", "normalised action"),
    keys.ACTION_POLICY: Quantity("per dimension", ACTION_FRAME),
    keys.ACTION_EXECUTED: Quantity("per dimension", ACTION_FRAME, "action"),
    keys.ACTION_TIME_NS: _NS,
    keys.STEP_START_NS: Quantity("ns", NONE, "timestamp"),
    keys.PRUNED_FROM: Quantity("denoise pass"),
    keys.decision("*"): _NUMBER,
    keys.margin("*"): _NUMBER,
    keys.pruner_state("length"): Quantity("entries"),
    keys.pruner_state("*"): _NUMBER,
    "timing/*": _NS,
    keys.generator("*"): Quantity("byte"),
}
"""Pattern of keys -> what they mean; the first pattern that fits counts."""


def quantity_of(key: str) -> Quantity:
    """What the array `key` means; raises TraceError for one that is not in the table."""
    for pattern, quantity in QUANTITIES.items():
        if fnmatchcase(key, pattern):
            if quantity.lerobot is None or "*" not in pattern:
                return quantity
            return replace(quantity, lerobot=quantity.lerobot.replace("*", key.rpartition("/")[2]))
    raise TraceError(f"array {key!r} has no unit and no frame; give it an entry in tracekit.quantities.QUANTITIES")


def described(key: str, spec: ArraySpec, action_spec: ActionSpec) -> ArraySpec:
    """`spec` with the unit of `key` and the attributes `frame` and, where there is one, `lerobot`.

    Actions and states also say how their rotation is written, what is an offset, and which way the gripper counts.
    """
    quantity = quantity_of(key)
    about: dict[str, Any] = {"frame": quantity.frame}
    if quantity.frame == ACTION_FRAME:
        about["frame"] = action_spec.frame
    elif quantity.frame == "camera":
        about["frame"] = f"camera {key.rpartition('/')[2]}"
    if quantity.unit == "per dimension":
        is_state = key == keys.STATE
        about |= {
            "names": list(action_spec.names),
            "units": list(action_spec.units),
            "translation": "absolute" if is_state else action_spec.translation,
            "rotation": "absolute" if is_state else action_spec.rotation,
            "rotation_form": action_spec.rotation_form,
            "gripper": "0 closed, 1 open",
        }
    if quantity.lerobot is not None:
        about["lerobot"] = quantity.lerobot
    return replace(spec, unit=quantity.unit, attributes={**spec.attributes, **about})
