"""Layers shared by the encoders, the embedders and the backbone: projections that carry the precision with them.

The release keeps float32 weights and runs under bfloat16 autocast, which casts every projection's weights again at each
call. Here a projection casts its *input* to the dtype of its weights, so that weights stored once in bfloat16 give the
same products and a denoise pass over a few rows does not read the model twice. Everything that is not a projection
(norms, residual sums, positions) stays in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["BatchNorm", "LayerNorm", "Linear", "Mlp", "Pointwise", "RMSNorm", "StdNorm", "projections"]


class Linear(nn.Linear):
    """y = x·Wᵀ + b in the dtype of W; any leading dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return functional.linear(x.to(self.weight.dtype), self.weight, self.bias)


class Pointwise(nn.Module):
    """A convolution with kernel size 1, applied to the last dimension.

    The weight keeps the convolution's shape, (out, in, 1) or (out, in, 1, 1), so that checkpoints load unchanged, but
    rows of features need no transposition to channels-first and back.
    """

    def __init__(self, inputs: int, outputs: int, kernel_dims: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, *(1,) * kernel_dims))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return functional.linear(x.to(self.weight.dtype), self.weight.flatten(1), self.bias)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation in float32, whatever the dtype of the input."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width) float32."""
        return super().forward(x.float())


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation over rows in float32; all leading dimensions are rows."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width) float32."""
        rows = super().forward(x.float().flatten(0, -2))
        return rows.view(x.shape)


class RMSNorm(nn.Module):
    """x · rsqrt(mean(x²) + eps) · w, LLaMA's norm."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        scaled = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return scaled.mul_(self.weight)


class StdNorm(nn.Module):
    """x · rsqrt(var(x) + 1e-6) · w with the unbiased variance.

    This is what the release's action head computes: its library divides by the unbiased variance where a root mean
    square is meant. The difference is visible in the predicted noise, so it is kept.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return x * torch.rsqrt(x.var(-1, keepdim=True) + 1e-6) * self.weight


class Mlp(nn.Module):
    """Linear, tanh-GELU, Linear: the embedders of numbers and the action head."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = Linear(inputs, hidden)
        self.fc2 = Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        rows: Tensor = self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))
        return rows


def projections(module: nn.Module) -> list[nn.Module]:
    """The modules below `module` whose weights take the projection dtype (bfloat16 where that is asked for)."""
    return [m for m in module.modules() if isinstance(m, Linear | Pointwise | nn.Conv2d)]
