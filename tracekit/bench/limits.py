"""What the machine can do at best: the measured rate of large matrix products and the measured memory bandwidth.

The limit of a computation is FLOPs / rate + bytes / bandwidth. Machines slow down and speed up, so both are measured
again immediately before everything that is held against them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

__all__ = ["Limits", "LimitsProbe", "timed_once_ms"]

SIDE = 4096
ROWS = 512
COPIED_BYTES = 2**28
GPU_REPEATS = 64
"""On a GPU one product or copy is over before its launch is: so many are launched in a row."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`matrix_rate`: FLOP/s of a (512 x 4096) by (4096 x 4096) product. `bandwidth`: bytes/s read or written."""

    matrix_rate: float
    bandwidth: float

    def milliseconds(self, flops: float, nbytes: float) -> float:
        """The limit of a computation with so many operations and so many bytes of weights and cache."""
        return 1e3 * (flops / self.matrix_rate + nbytes / self.bandwidth)


class LimitsProbe:
    """Measures the limits of `device` for products in `dtype`; every call is one measurement."""

    def __init__(self, dtype: torch.dtype, device: str) -> None:
        self._device = device
        self._repeats = GPU_REPEATS if device.startswith("cuda") else 1
        self._rows = torch.rand(ROWS, SIDE, device=device).to(dtype)
        self._weight = torch.rand(SIDE, SIDE, device=device).to(dtype)
        self._source = torch.zeros(COPIED_BYTES // 4, device=device)
        self._target = torch.zeros_like(self._source)
        self()  # what the first calls load and allocate is no limit

    def __call__(self) -> Limits:
        """The limits of this moment."""
        product = timed_once_ms(self._products, self._device)
        copy = timed_once_ms(self._copies, self._device)
        return Limits(
            matrix_rate=self._repeats * 2 * ROWS * SIDE * SIDE / (product / 1e3),
            bandwidth=self._repeats * 2 * COPIED_BYTES / (copy / 1e3),
        )

    def _products(self) -> None:
        for _ in range(self._repeats):
            torch.nn.functional.linear(self._rows, self._weight)

    def _copies(self) -> None:
        for _ in range(self._repeats):
            self._target.copy_(self._source)


def timed_once_ms(call: Callable[[], object], device: str) -> float:
    """Wall milliseconds of one call; waits for the device before and after."""
    _synchronise(device)
    start = time.perf_counter_ns()
    call()
    _synchronise(device)
    return (time.perf_counter_ns() - start) / 1e6


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
