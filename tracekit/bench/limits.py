"""What the machine can do at best: the measured rate of large matrix products and the measured memory bandwidth.

The limit of a computation is FLOPs / rate + bytes / bandwidth, both measured in the run that they are compared with.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

__all__ = ["Limits", "measure_limits", "synchronise", "timed_ms", "timed_once_ms"]

SIDE = 4096
ROWS = 512
COPIED_BYTES = 2**28


@dataclass(frozen=True, slots=True)
class Limits:
    """`matrix_rate`: FLOP/s of a (512 x 4096) by (4096 x 4096) product. `bandwidth`: bytes/s read or written."""

    matrix_rate: float
    bandwidth: float

    def milliseconds(self, flops: float, nbytes: float) -> float:
        """The limit of a computation with so many operations and so many bytes of weights and cache."""
        return 1e3 * (flops / self.matrix_rate + nbytes / self.bandwidth)


def measure_limits(dtype: torch.dtype, device: str, rounds: int = 5) -> Limits:
    """Measure both, as the median of `rounds`."""
    rows = torch.rand(ROWS, SIDE, device=device).to(dtype)
    weight = torch.rand(SIDE, SIDE, device=device).to(dtype)
    source = torch.zeros(COPIED_BYTES // 4, device=device)
    target = torch.empty_like(source)
    product = timed_ms(lambda: torch.nn.functional.linear(rows, weight), device, rounds)
    copy = timed_ms(lambda: target.copy_(source), device, rounds)
    return Limits(
        matrix_rate=2 * ROWS * SIDE * SIDE / (float(np.median(product)) / 1e3),
        bandwidth=2 * COPIED_BYTES / (float(np.median(copy)) / 1e3),
    )


def timed_ms(call: Callable[[], object], device: str, rounds: int) -> list[float]:
    """Wall milliseconds of `rounds` calls after one that is not counted."""
    call()
    return [timed_once_ms(call, device) for _ in range(rounds)]


def timed_once_ms(call: Callable[[], object], device: str) -> float:
    """Wall milliseconds of one call; waits for the device before and after."""
    synchronise(device)
    start = time.perf_counter_ns()
    call()
    synchronise(device)
    return (time.perf_counter_ns() - start) / 1e6


def synchronise(device: str) -> None:
    """Wait until the device has finished what was asked of it."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
