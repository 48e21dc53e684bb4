"""Embedders of the numbers in the sequence (state, timestep, noisy action) and the head that reads the noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tracekit.model.layers import Linear, Mlp, StdNorm

__all__ = ["ActionHead", "NumberEmbedder", "TimestepEmbedder"]

FREQUENCIES = 128


class NumberEmbedder(nn.Module):
    """One row per vector of numbers: Linear, tanh-GELU, Linear. Used for the state and for the noisy action."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.mlp = Mlp(inputs, hidden, hidden)

    def forward(self, numbers: Tensor) -> Tensor:
        """(..., inputs) -> (..., hidden)."""
        rows: Tensor = self.mlp(numbers)
        return rows


class TimestepEmbedder(nn.Module):
    """[cos, sin] of t·exp(-ln 10000 · i / 128), i < 128, then Linear, SiLU, Linear."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(Linear(2 * FREQUENCIES, hidden), nn.SiLU(), Linear(hidden, hidden))

    def forward(self, timesteps: Tensor) -> Tensor:
        """(n,) -> (n, hidden)."""
        order = torch.arange(FREQUENCIES, dtype=torch.float32, device=timesteps.device)
        angles = timesteps.float()[:, None] * torch.exp(-math.log(10000) * order / FREQUENCIES)
        rows: Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], -1))
        return rows


class ActionHead(nn.Module):
    """Norm, then Linear, tanh-GELU, Linear: final hidden states of the action rows -> predicted noise."""

    def __init__(self, hidden: int, outputs: int) -> None:
        super().__init__()
        self.norm_final = StdNorm(hidden)
        self.mlp = Mlp(hidden, hidden, outputs)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., hidden) -> (..., outputs)."""
        noise: Tensor = self.mlp(self.norm_final(hidden))
        return noise
