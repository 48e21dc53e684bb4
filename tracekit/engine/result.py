"""What one control step yields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit.layout import TokenLayout
from tracekit.pruning import Decision, Observables

__all__ = ["PassRecord", "StepResult"]


@dataclass(frozen=True, slots=True)
class PassRecord:
    """Encoder output of one denoise pass: point centres (N_3D, 3) float32 m, patch (N_3D,) int32, prefix rows if kept.

    `rows_digest`: SHA-256 of the prefix rows as float32.
    """

    centres: npt.NDArray[np.float32] | None
    patch: npt.NDArray[np.int32] | None
    rows: npt.NDArray[np.float32] | None
    rows_digest: bytes


@dataclass(frozen=True, slots=True)
class StepResult:
    """One control step: the action, how it came about, and what it cost.

    `samples`: (passes, T, A) float32 after every denoise pass; the last is the unclipped action. `action`: (T, A)
    float64 as executed. `kept`: (passes, N_visual) bool, image tokens then point tokens, True where the token was a row
    (or a cache entry) of that pass. `decision`: what the pruner answered; it governs the passes from `pruned_from` on
    (equal to the number of passes where nothing was pruned). `observables`: of pass 0, where they were taken.
    `action_rows`: (passes - 1, layers, N_visual) float32 head means of the later passes, where captured. `encoded`: per
    pass that ran the encoders, if asked for. `times_ns`: (stages, passes) int64; `wall_ns`: the whole step. `extras`:
    what else the capture took of pass 0, by name (`tracekit.capture.extras`). `hooks_ns` (layers,), `reduction_ns`: the
    capture's cost in the hooks of every layer, and in the arithmetic that layers share. `whole_share`: the share of the
    decoder blocks that run over all rows before any is dropped (0 where rows are dropped before the first). `repeated`:
    no pass ran, and everything but the times is that of the step before (`reuse = skip_frame`).
    """

    action: npt.NDArray[np.float64]
    samples: npt.NDArray[np.float32]
    kept: npt.NDArray[np.bool_]
    decision: Decision
    pruned_from: int
    layout: TokenLayout
    text_ids: npt.NDArray[np.int64]
    memory: Any
    times_ns: npt.NDArray[np.int64]
    wall_ns: int
    observables: Observables | None = None
    action_rows: npt.NDArray[np.float32] | None = None
    encoded: tuple[PassRecord, ...] = field(default=())
    extras: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    hooks_ns: npt.NDArray[np.int64] | None = None
    reduction_ns: int = 0
    whole_share: float = 0.0
    repeated: bool = False

    @property
    def unclipped(self) -> npt.NDArray[np.float32]:
        """(T, A) the sampler's output before clipping: what digests and bitwise comparisons are made of."""
        return np.asarray(self.samples[-1])
