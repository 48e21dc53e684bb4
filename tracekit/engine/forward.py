"""One denoise pass through the backbone: the whole sequence, or the tail over a prefix kept in the cache.

This module is the only place where rows are dropped. Kept rows keep their RoPE positions of the unpruned sequence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tracekit.capture import AttentionTap
from tracekit.layout import TokenLayout
from tracekit.policy import Cache, Policy, Prefix
from tracekit.profiling import Stage, StageClock

__all__ = ["CachedForward", "FullForward", "PassForward", "invariant_rows"]


def invariant_rows(rows: int) -> int:
    """The smallest row count from `rows` on whose fp32 products do not depend on what else is in the batch.

    Measured: products with 4, 8 and at least 12 rows are batch-invariant, those in between are not.
    """
    return next(count for count in (4, 8, max(12, rows)) if count >= rows)


class PassForward(ABC):
    """Runs denoise passes of a control step over kept prefix rows; a subclass decides what is computed anew."""

    def __init__(self, policy: Policy, layout: TokenLayout, clock: StageClock) -> None:
        self._policy = policy
        self._clock = clock
        self._prefix_positions = torch.arange(layout.prefix_length)
        self._tail_positions = torch.arange(layout.prefix_length, layout.length)
        action = layout.span("action")
        self._action = slice(action.start - layout.prefix_length, action.stop - layout.prefix_length)
        self._visual = layout.visual_positions
        self._everything = torch.ones(layout.prefix_length, dtype=torch.bool)

    @abstractmethod
    def predict(
        self, step: int, prefix: Prefix, kept: npt.NDArray[np.bool_], sample: Tensor, tap: AttentionTap | None
    ) -> Tensor:
        """Predicted noise (T, A) of pass `step` for the noisy `sample`, from the `kept` (N_visual,) visual tokens."""

    def _compact(self, step: int, prefix: Prefix, kept: npt.NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
        """Kept prefix rows and their positions in the unpruned sequence."""
        if bool(kept.all()):
            return prefix.rows, self._prefix_positions
        with self._clock.stage("compact", step):
            mask = self._everything.clone()
            mask[torch.from_numpy(self._visual)] = torch.from_numpy(kept)
            positions = mask.nonzero().flatten()
            return prefix.rows.index_select(0, positions.to(prefix.rows.device)), positions

    def _run(
        self,
        stage: Stage,
        step: int,
        rows: Tensor,
        positions: Tensor,
        tap: AttentionTap | None,
        cache: Cache | None = None,
        held: Tensor | None = None,
    ) -> Tensor:
        """The backbone, inside `stage`; the time of the tap's hooks goes to `observe`: observing pays for itself."""
        if tap is None:
            return self._policy.forward(rows, positions, cache)
        before = tap.elapsed_ns
        with tap.rows(positions, held):
            hidden = self._policy.forward(rows, positions, cache)
        self._clock.move(stage, "observe", step, tap.elapsed_ns - before)
        return hidden


class FullForward(PassForward):
    """The whole sequence in every pass, as the release runs it."""

    def predict(
        self, step: int, prefix: Prefix, kept: npt.NDArray[np.bool_], sample: Tensor, tap: AttentionTap | None
    ) -> Tensor:
        """See `PassForward.predict`."""
        rows, positions = self._compact(step, prefix, kept)
        with self._clock.stage("denoise", step):
            tail = self._policy.embed_tail(sample, step)
        with self._clock.stage("prefill", step):
            sequence = torch.cat([rows, tail])
            hidden = self._run("prefill", step, sequence, torch.cat([positions, self._tail_positions]), tap)
        with self._clock.stage("denoise", step):
            return self._policy.read_noise(hidden[len(rows) :][self._action])


class CachedForward(PassForward):
    """Keys and values of the kept prefix once, then the tail alone; other kept rows prefill anew (`kv = reprefill`)."""

    def __init__(self, policy: Policy, layout: TokenLayout, clock: StageClock) -> None:
        super().__init__(policy, layout, clock)
        used = self._action.stop  # the tail token after the action is inert: nothing attends to it
        self._padding = invariant_rows(used) - used
        self._used = used
        self._cache: Cache | None = None
        self._held = torch.empty(0, dtype=torch.long)
        self._kept = b""

    def predict(
        self, step: int, prefix: Prefix, kept: npt.NDArray[np.bool_], sample: Tensor, tap: AttentionTap | None
    ) -> Tensor:
        """See `PassForward.predict`."""
        cache = self._cache
        if cache is None or self._kept != kept.tobytes():
            cache = self._prefill(step, prefix, kept, tap)
        with self._clock.stage("denoise", step):
            tail = self._policy.embed_tail(sample, step)[: self._used]
            rows = torch.cat([tail, tail[-1:].expand(self._padding, -1)])
            positions = torch.arange(int(self._tail_positions[0]), int(self._tail_positions[0]) + len(rows))
            hidden = self._run("denoise", step, rows, positions, tap, cache, self._held)
            cache.truncate(len(self._held))
            return self._policy.read_noise(hidden[self._action])

    def _prefill(self, step: int, prefix: Prefix, kept: npt.NDArray[np.bool_], tap: AttentionTap | None) -> Cache:
        rows, positions = self._compact(step, prefix, kept)
        with self._clock.stage("prefill", step):
            cache = self._policy.new_cache(len(rows) + self._used + self._padding)
            self._run("prefill", step, rows, positions, tap, cache)
        self._cache, self._held, self._kept = cache, positions, kept.tobytes()
        return cache
