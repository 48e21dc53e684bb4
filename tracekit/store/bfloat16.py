"""bfloat16 tensors to and from the uint16 bits under which a trace keeps them (zarr has no bfloat16)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from tracekit.errors import TraceError

__all__ = ["from_bits", "to_bits"]


def to_bits(tensor: torch.Tensor) -> npt.NDArray[np.uint16]:
    """The bits of a bfloat16 tensor of any shape, as uint16, shared with a CPU tensor; TraceError on other dtypes."""
    if tensor.dtype != torch.bfloat16:
        raise TraceError(f"tensor is {tensor.dtype}, its bits are asked for as bfloat16; convert it first")
    bits: npt.NDArray[np.uint16] = tensor.detach().contiguous().cpu().view(torch.int16).numpy().view(np.uint16)
    return bits


def from_bits(bits: npt.NDArray[np.uint16]) -> torch.Tensor:
    """The bfloat16 CPU tensor with these uint16 bits, sharing their memory; TraceError on other dtypes."""
    if bits.dtype != np.uint16:
        raise TraceError(f"bits are {bits.dtype}, bfloat16 is stored as uint16; pass what the trace returned")
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
