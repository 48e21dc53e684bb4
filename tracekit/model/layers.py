"""Layers shared by the encoders, the embedders and the backbone: projections that carry the precision with them.

The release keeps float32 weights and runs under bfloat16 autocast, which casts every projection's weights again at each
call. Here a projection casts its *input* to the dtype of its weights, so that weights stored once in bfloat16 give the
same products and a denoise pass over a few rows does not read the model twice. Everything that is not a projection
(norms, residual sums, positions) stays in float32.

On a CPU a bfloat16 product first brings its weights into the order that the matrix unit reads, at every call. `pack`
does that once, for good: the products keep their bits, and over a hundred rows take a tenth less.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["BatchNorm", "Embedding", "LayerNorm", "Linear", "Mlp", "Pointwise", "RMSNorm", "StdNorm", "projections"]

PACKED_FOR_ROWS = 256
"""Rows that the packed order is chosen for; it serves others too."""


class Linear(nn.Linear):
    """y = x·Wᵀ + b in the dtype of W; any leading dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        x = x.to(self.weight.dtype)
        if self.weight.is_mkldnn:
            product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")  # noqa: SLF001  # how torch's own compiler calls it
            return product
        return functional.linear(x, self.weight, self.bias)

    def pack(self) -> None:
        """Keep the weights in the order that a CPU's bfloat16 products read; elsewhere, and in float32, do nothing.

        For inference only. They take no more room; `weight.to_dense()` gives the plain ones back.
        """
        plain = self.weight.detach()
        if plain.dtype == torch.bfloat16 and plain.device.type == "cpu" and not plain.is_mkldnn and _packs():
            packed = torch.ops.mkldnn._reorder_linear_weight(plain, PACKED_FOR_ROWS)  # noqa: SLF001  # as above
            self.weight = nn.Parameter(packed, requires_grad=False)


@cache
def _packs() -> bool:
    """Whether this build and this CPU have packed bfloat16 products."""
    operators = torch.ops.mkldnn
    named = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not available or not all(hasattr(operators, name) for name in named):
        return False
    return bool(operators._is_mkldnn_bf16_supported())  # noqa: SLF001  # as above


class Embedding(nn.Embedding):
    """Rows by number. On the meta device nothing is drawn: torch would load its compiler for normals nobody reads."""

    def reset_parameters(self) -> None:
        """As torch does it, where there is memory to draw into."""
        if not self.weight.is_meta:
            super().reset_parameters()


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
    """Batch normalisation over rows; all leading dimensions are rows. Computes in float32, answers as it was asked."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width) of the same dtype."""
        rows = super().forward(x.flatten(0, -2))
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
