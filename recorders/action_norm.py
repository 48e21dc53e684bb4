"""Which norm the action head of a policy that is not ours computes: the release's depends on what is installed."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

__all__ = ["action_norm"]

EPSILON = 1e-6
TOLERANCE = 2e-2
"""Of the head's answer to the probe; half precision rounds to less, and the two norms differ by more."""


def action_norm(head: nn.Module) -> Literal["std", "rms"] | None:
    """`std`: x·rsqrt(var(x, unbiased) + 1e-6)·w, as the release computes without APEX; `rms`: the root mean square.

    Found by asking `head` (norm_final.weight (D,), then mlp) about one row whose mean is far from zero, where the two
    differ. None for a head that is built otherwise. Draws no random number.
    """
    weight: Any = getattr(getattr(head, "norm_final", None), "weight", None)
    mlp = getattr(head, "mlp", None)
    if not isinstance(weight, Tensor) or not isinstance(mlp, nn.Module):
        return None
    with torch.inference_mode():
        row = torch.linspace(-1, 3, len(weight), device=weight.device, dtype=weight.dtype)[None]
        variances = {"std": row.var(-1, keepdim=True), "rms": row.square().mean(-1, keepdim=True)}
        answers = {name: mlp(row * torch.rsqrt(square + EPSILON) * weight) for name, square in variances.items()}
        asked = head(row)
        errors = {name: float((asked - answer).abs().max() / asked.abs().max()) for name, answer in answers.items()}
    best: Literal["std", "rms"] = "std" if errors["std"] <= errors["rms"] else "rms"
    return best if errors[best] <= TOLERANCE else None
