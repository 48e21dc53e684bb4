"""How far a replayed action is from the recorded one, in the robot's units. Open-loop: it says nothing of success."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tracekit.actions import ActionSpec

__all__ = ["Deviation", "deviation"]


@dataclass(frozen=True, slots=True)
class Deviation:
    """Means over the steps (and over the actions of a chunk).

    `translation_mm`: distance between the translations. `rotation_deg`: angle between the rotations. `gripper_flips`:
    number of actions whose gripper is on the other side of the threshold. `unclipped_relative`: ‖a − b‖ / ‖b‖ of the
    sampler's outputs a (replayed) and b (recorded). `clipped_share`: share of the replayed output's entries outside
    [-1, 1]; where it is high, the executed action hides differences.
    """

    translation_mm: float
    rotation_deg: float
    gripper_flips: int
    unclipped_relative: float
    clipped_share: float


def deviation(
    spec: ActionSpec,
    actions: Sequence[npt.NDArray[np.float64]],
    recorded: Sequence[npt.NDArray[np.float64]],
    unclipped: Sequence[npt.NDArray[np.float32]],
    recorded_unclipped: Sequence[npt.NDArray[np.float32]],
) -> Deviation:
    """Compare step by step; every array is (T, A)."""
    pairs = [
        (spec.split(a), spec.split(b))
        for one, other in zip(actions, recorded, strict=True)
        for a, b in zip(one, other, strict=True)
    ]
    moved = [float(np.linalg.norm(ours[0] - theirs[0])) for ours, theirs in pairs]
    turned = [_angle(ours[1], theirs[1]) for ours, theirs in pairs]
    threshold = spec.gripper_threshold
    flips = sum((ours[2] > threshold) != (theirs[2] > threshold) for ours, theirs in pairs)
    relative = [
        float(np.linalg.norm(a.astype(np.float64) - b) / max(float(np.linalg.norm(b.astype(np.float64))), 1e-12))
        for a, b in zip(unclipped, recorded_unclipped, strict=True)
    ]
    return Deviation(
        translation_mm=1e3 * float(np.mean(moved)),
        rotation_deg=float(np.degrees(np.mean(turned))),
        gripper_flips=int(flips),
        unclipped_relative=float(np.mean(relative)),
        clipped_share=float(np.mean([np.abs(a) > 1 for a in unclipped])),
    )


def _angle(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Angle in radians between two rotation matrices; the chord form is accurate near zero."""
    chord = float(np.linalg.norm(a - b)) / np.sqrt(8.0)
    return 2.0 * float(np.arcsin(min(1.0, chord)))
