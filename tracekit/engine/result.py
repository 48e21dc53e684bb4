"""What one control step yields."""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit.layout import TokenLayout
from tracekit.pruning import Decision, Observables

__all__ = ["Captured", "Deferred", "PassRecord", "StepResult", "rows_digest", "unread"]


@dataclass(frozen=True, slots=True)
class PassRecord:
    """Encoder output of one denoise pass: point centres (N_3D, 3) float32 m, patch (N_3D,) int32, prefix rows if kept.

    `digest`: SHA-256 of the prefix rows as float32; None where `rows` are there to take it of, when it is asked for.
    """

    centres: npt.NDArray[np.float32] | None
    patch: npt.NDArray[np.int32] | None
    rows: npt.NDArray[np.float32] | None
    digest: bytes | None = None

    @property
    def rows_digest(self) -> bytes:
        """SHA-256 of the prefix rows as float32."""
        return rows_digest(self.rows) if self.digest is None and self.rows is not None else self.digest or b""


def rows_digest(rows: npt.NDArray[np.float32]) -> bytes:
    """SHA-256 of prefix rows (n, D)."""
    return hashlib.sha256(np.ascontiguousarray(rows).data).digest()


@dataclass(frozen=True, slots=True)
class Captured:
    """What was taken out of a step's forward passes.

    `observables`: of pass 0. `action_rows`: (passes - 1, layers, N_visual) float32 head means of the later passes.
    `extras`: what else of pass 0, by name (`tracekit.capture.extras`). `hooks_ns` (layers,), `reduction_ns`: the
    capture's cost in the hooks of every layer, and in the arithmetic that layers share.
    """

    observables: Observables | None = None
    action_rows: npt.NDArray[np.float32] | None = None
    extras: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    hooks_ns: npt.NDArray[np.int64] | None = None
    reduction_ns: int = 0


class Deferred:
    """What `take` gives, taken once, when it is first asked for, by whichever thread asks.

    `policy`: whose caches `take` may still read; `unread` finds it until it was asked for.
    """

    def __init__(self, take: Callable[[], Captured], policy: object) -> None:
        self._take: Callable[[], Captured] | None = take
        self.policy: object = policy
        self._lock = threading.Lock()
        self._found = Captured()
        _UNREAD.add(self)

    def get(self) -> Captured:
        """The captured; raises what `take` raises."""
        with self._lock:
            if self._take is not None:
                self._found, self._take, self.policy = self._take(), None, None
                _UNREAD.discard(self)
            return self._found


_UNREAD: weakref.WeakSet[Deferred] = weakref.WeakSet()
"""Of the process, because several controllers may drive one policy. What nobody can ask for any more leaves it."""


def unread(policy: object) -> list[Deferred]:
    """What was taken from `policy` and waits to be asked for."""
    return [deferred for deferred in list(_UNREAD) if deferred.policy is policy]


@dataclass(frozen=True, slots=True)
class StepResult:
    """One control step: the action, how it came about, and what it cost.

    `samples`: (passes, T, A) float32 after every denoise pass; the last is the unclipped action. `action`: (T, A)
    float64 as executed. `kept`: (passes, N_visual) bool, image tokens then point tokens, True where the token was a row
    (or a cache entry) of that pass. `decision`: what the pruner answered; it governs the passes from `pruned_from` on
    (equal to the number of passes where nothing was pruned). `times_ns`: (stages, passes) int64; `wall_ns`: the whole
    step. `captured`: what was taken out of the passes; of a small policy it may be computed only when it is read, so
    that the loop does not wait for it. `encoded`: per pass that ran the encoders, if asked for. `whole_share`: the
    share of the decoder blocks that run over all rows before any is dropped (0 where rows are dropped before the
    first). `repeated`: no pass ran, and everything but the times is that of the step before (`reuse = skip_frame`).
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
    captured: Captured | Deferred = field(default_factory=Captured)
    encoded: tuple[PassRecord, ...] = field(default=())
    whole_share: float = 0.0
    repeated: bool = False

    @property
    def unclipped(self) -> npt.NDArray[np.float32]:
        """(T, A) the sampler's output before clipping: what digests and bitwise comparisons are made of."""
        return np.asarray(self.samples[-1])

    @property
    def observables(self) -> Observables | None:
        """Of pass 0, where they were taken."""
        return self._captured.observables

    @property
    def action_rows(self) -> npt.NDArray[np.float32] | None:
        """(passes - 1, layers, N_visual) float32 head means of the action rows, where captured."""
        return self._captured.action_rows

    @property
    def extras(self) -> Mapping[str, npt.NDArray[Any]]:
        """What else the capture took of pass 0, by name."""
        return self._captured.extras

    @property
    def hooks_ns(self) -> npt.NDArray[np.int64] | None:
        """(layers,) cost of the capture's hooks."""
        return self._captured.hooks_ns

    @property
    def reduction_ns(self) -> int:
        """Cost of the arithmetic that layers share."""
        return self._captured.reduction_ns

    @property
    def _captured(self) -> Captured:
        return self.captured.get() if isinstance(self.captured, Deferred) else self.captured
