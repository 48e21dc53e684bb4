"""The action diffusion: 100 training steps, squared-cosine schedule, DDIM sampling with eta 0 and no clipping."""

from __future__ import annotations

import math
import operator
from functools import cache
from itertools import accumulate

import numpy as np
import numpy.typing as npt
from torch import Tensor

__all__ = ["TRAINING_STEPS", "add_noise", "alphas", "ddim_step", "ddim_timesteps"]

TRAINING_STEPS = 100


@cache
def alphas() -> npt.NDArray[np.float64]:
    """(100,) cumulative ᾱ_t of schedule squaredcos_cap_v2.

    β_t = min(1 - f((t + 1)/100) / f(t/100), 0.999) with f(x) = cos²(π/2 · (x + 0.008)/1.008); ᾱ_t = Π (1 - β).
    """

    def level(x: float) -> float:
        return math.cos((x + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - level((t + 1) / TRAINING_STEPS) / level(t / TRAINING_STEPS), 0.999) for t in range(TRAINING_STEPS)]
    cumulative = np.array(list(accumulate((1 - beta for beta in betas), operator.mul)), np.float64)
    cumulative.setflags(write=False)
    return cumulative


@cache
def ddim_timesteps(steps: int) -> tuple[int, ...]:
    """The training steps that `steps` (1 ... 100) DDIM passes visit, noisiest first.

    The smallest stride whose multiples below 100 number exactly `steps` (8: 91, 78, 65, 52, 39, 26, 13, 0); where no
    stride does (16, say), `steps` points spread evenly over 0 ... 99.
    """
    for stride in range(1, TRAINING_STEPS + 1):
        visited = range(0, TRAINING_STEPS, stride)
        if len(visited) == steps:
            return tuple(reversed(visited))
    spread = (TRAINING_STEPS - 1) / (steps - 1)
    return tuple(round(i * spread) for i in reversed(range(steps)))


def ddim_step(sample: Tensor, noise: Tensor, alpha: float, alpha_next: float) -> Tensor:
    """One DDIM step with eta 0: x ← √ᾱ' · x̂₀ + √(1 - ᾱ') · ε with x̂₀ = (x - √(1 - ᾱ) · ε) / √ᾱ, unclipped.

    `sample`, `noise`: (..., T, A) float32; `alpha`, `alpha_next`: ᾱ at this step and at the next (1 after the last).
    """
    clean = math.sqrt(1 / alpha) * sample - math.sqrt(1 / alpha - 1) * noise
    return math.sqrt(alpha_next) * clean + math.sqrt(1 - alpha_next) * noise


def add_noise(action: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """The forward process of training: √ᾱ_t · action + √(1 - ᾱ_t) · noise.

    `action`, `noise`: (B, T, A) normalised, float32; `timesteps`: (B,) int64 in 0 ... 99.
    """
    alpha = action.new_tensor(alphas()).to(action.dtype)[timesteps.to(action.device)][:, None, None]
    return alpha.sqrt() * action + (1 - alpha).sqrt() * noise
