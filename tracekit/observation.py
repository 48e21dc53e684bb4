"""What the sensors saw at one control step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tracekit.camera import Camera

__all__ = ["Observation"]


@dataclass(frozen=True, slots=True)
class Observation:
    """One step's sensor readings, in the units that the trace stores.

    `images`: view name -> (H, W, 3) uint8 RGB, front view first. `points`: (N, 3) float32, metres, base frame of the
    robot, or None for a policy without points. `state`: (S,) float64, laid out as the policy's `ActionSpec.state`.
    `cameras`: view name -> camera model, only for views that have one. `depth`: view -> (H, W) float32 metres along the
    optical axis (0 where nothing was hit). `segmentation`: view -> (H, W) uint8 class (0 background, 1 robot, 2 target
    object, 3 other object). `time_ns`: measured monotonic time of every sensor reading.
    """

    images: Mapping[str, npt.NDArray[np.uint8]]
    points: npt.NDArray[np.float32] | None
    state: npt.NDArray[np.float64]
    instruction: str
    cameras: Mapping[str, Camera] = field(default_factory=dict)
    depth: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    segmentation: Mapping[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    time_ns: Mapping[str, int] = field(default_factory=dict)
