"""The random inputs of a control step, drawn once and recorded, so that a replay feeds on exactly the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tracekit.philox import action_noise, fps_starts
from tracekit.policy import Policy, Tokens

__all__ = ["StepDraws", "draw"]


@dataclass(frozen=True, slots=True)
class StepDraws:
    """`noise`: (T, A) float32 initial sample. `fps_starts`: (passes, stages) int64 start index of every FPS stage.

    `generators`: name -> uint8 state of a random generator of the process when the step began, where the policy drew
    from one by itself; the engine draws by counter and has none.
    """

    noise: npt.NDArray[np.float32]
    fps_starts: npt.NDArray[np.int64]
    generators: Mapping[str, npt.NDArray[np.uint8]] = field(default_factory=dict)


def draw(policy: Policy, tokens: Tokens, episode_uid: int, step: int) -> StepDraws:
    """The draws of control step `step` (1-based), keyed by counter: no generator state, no order of calls."""
    return StepDraws(
        noise=action_noise(episode_uid, step, policy.action_shape),
        fps_starts=fps_starts(episode_uid, step, policy.passes, tokens.fps_sizes),
    )
