"""Wall time per stage and denoise pass, with the NVTX range of the same extent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import numpy.typing as npt

from tracekit.profiling.nvtx_emitter import NvtxEmitter
from tracekit.profiling.stages import STAGES, Stage

__all__ = ["StageClock"]

_INDEX = {stage: index for index, stage in enumerate(STAGES)}


@cache
def _emitter() -> NvtxEmitter:
    return NvtxEmitter()


class StageClock:
    """Collects one control step. Stages are leaves: they do not nest, so their sum never counts a nanosecond twice.

    `times_ns`: (stages, passes) int64. `payload` goes with every NVTX range (see `pack_payload`).
    """

    def __init__(self, passes: int, payload: int = 0) -> None:
        self.times_ns: npt.NDArray[np.int64] = np.zeros((len(STAGES), passes), np.int64)
        self._payload = payload
        self._started_ns = time.perf_counter_ns()
        self._emitter = _emitter()

    @contextmanager
    def stage(self, stage: Stage, denoise_pass: int = 0) -> Iterator[None]:
        """Time the block as `stage` of `denoise_pass` (0-based)."""
        self._emitter.push(stage, self._payload)
        start = time.perf_counter_ns()
        try:
            yield
        finally:
            self.times_ns[_INDEX[stage], denoise_pass] += time.perf_counter_ns() - start
            self._emitter.pop()

    def move(self, source: Stage, target: Stage, denoise_pass: int, nanoseconds: int) -> None:
        """Charge time that was spent inside `source` to `target`."""
        self.times_ns[_INDEX[source], denoise_pass] -= nanoseconds
        self.times_ns[_INDEX[target], denoise_pass] += nanoseconds

    def elapsed_ns(self) -> int:
        """Wall time since this clock was made, at the start of the step."""
        return time.perf_counter_ns() - self._started_ns

    def total_ns(self) -> int:
        """Sum over the leaves."""
        return int(self.times_ns.sum())

    def stage_ns(self, stage: Stage) -> int:
        """Sum over the passes of one stage."""
        return int(self.times_ns[_INDEX[stage]].sum())
