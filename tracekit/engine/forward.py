"""One denoise pass through the backbone: the whole sequence, or the tail over a prefix kept in the cache.

This module is the only place where rows are dropped: before the first decoder block, or behind a later one. Kept rows
keep their RoPE positions of the unpruned sequence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tracekit.capture import AttentionTap
from tracekit.engine.result import unread
from tracekit.layout import TokenLayout
from tracekit.policy import Cache, Policy, Prefix
from tracekit.profiling import Stage, StageClock

__all__ = ["Beside", "CachedForward", "Dropping", "FullForward", "Inside", "PassForward", "invariant_rows"]

Mask = npt.NDArray[np.bool_]
Beside = Callable[[Tensor, Tensor, Cache | None], Tensor]
"""`Policy.forward`, computed together with the calls of other control steps; see `tracekit.engine.together`."""


def invariant_rows(rows: int) -> int:
    """The smallest row count from `rows` on whose fp32 products do not depend on what else is in the batch.

    Measured: products with 4, 8 and at least 12 rows are batch-invariant, those in between are not.
    """
    return next(count for count in (4, 8, max(12, rows)) if count >= rows)


@dataclass(frozen=True, slots=True)
class Dropping:
    """How rows are dropped.

    `behind`: the decoder block (0-based) after which they leave; None: before the first. `masked`: they stay and are
    hidden from the others (`execution.drop = "mask"`). `cut_cache`: they are cut out of the unpruned cache instead of
    prefilling the kept rows anew (`kv = drop`). `layers`: how many decoder blocks there are.
    """

    behind: int | None = None
    masked: bool = False
    cut_cache: bool = False
    layers: int = 1

    @property
    def whole_share(self) -> float:
        """Share of the decoder blocks that run before rows leave."""
        return 0.0 if self.behind is None else (self.behind + 1) / self.layers


@dataclass(frozen=True, slots=True)
class Inside:
    """A decision in the middle of pass 0: `tap` watches the blocks before it, `decide` gives the (N_visual,) mask."""

    tap: AttentionTap
    decide: Callable[[], Mask]


class PassForward(ABC):
    """Runs denoise passes of a control step over kept prefix rows; a subclass decides what is computed anew.

    Positions, masks and the buffer of the tail are made once, here or with the cache: a pass over a kept prefix
    allocates nothing that grows with the prefix.
    """

    def __init__(
        self,
        policy: Policy,
        layout: TokenLayout,
        clock: StageClock,
        dropping: Dropping,
        beside: Beside | None = None,
    ) -> None:
        self._policy = policy
        self._beside = beside
        self._clock = clock
        self._dropping = dropping
        action = layout.span("action")
        self._action = slice(action.start - layout.prefix_length, action.stop - layout.prefix_length)
        self._prefix_positions = torch.arange(layout.prefix_length)
        self._tail_positions = torch.arange(layout.prefix_length, layout.length)
        self._visual = torch.from_numpy(layout.visual_positions)
        self._places = layout.length + invariant_rows(layout.length - layout.prefix_length)
        behind = dropping.behind
        self._first = None if behind is None else slice(0, behind + 1)
        self._rest = None if behind is None else slice(behind + 1, None)

    @abstractmethod
    def predict(
        self,
        step: int,
        prefix: Prefix,
        kept: Mask | Inside,
        sample: Tensor,
        tap: AttentionTap | None,
    ) -> Tensor:
        """Predicted noise (T, A) of pass `step` for the noisy `sample`, from the `kept` (N_visual,) visual tokens.

        In the pass that decides them behind a block, `kept` is the way to decide.
        """

    def _stays(self, kept: Mask) -> Tensor:
        """(places,) bool over positions of the unpruned sequence, and of rows that pad the tail."""
        stays = torch.ones(self._places, dtype=torch.bool)
        stays[self._visual] = torch.from_numpy(kept)
        return stays

    def _compact(self, step: int, rows: Tensor, positions: Tensor, kept: Mask) -> tuple[Tensor, Tensor]:
        """The rows that stay, gathered once, and their positions."""
        if self._dropping.masked or bool(kept.all()):
            return rows, positions
        with self._clock.stage("compact", step):
            index = self._stays(kept)[positions].nonzero().flatten()
            return rows.index_select(0, index.to(rows.device)), positions[index]

    def _visible(self, kept: Mask, positions: Tensor, held: Tensor | None) -> Tensor | None:
        """(n, keys) bool for rows that stay and are masked: causal, without the dropped keys, each seeing itself."""
        if not self._dropping.masked or bool(kept.all()):
            return None
        before = 0 if held is None else len(held)
        keys = positions if held is None else torch.cat([held, positions])
        causal = torch.ones(len(positions), len(keys), dtype=torch.bool).tril(before)
        itself = torch.zeros_like(causal)
        itself.diagonal(before).fill_(True)  # torch takes the value by position only
        return (causal & self._stays(kept)[keys]) | itself

    def _run(
        self,
        stage: Stage,
        step: int,
        rows: Tensor,
        positions: Tensor,
        taps: Sequence[AttentionTap | None],
        cache: Cache | None = None,
        held: Tensor | None = None,
        visible: Tensor | None = None,
        blocks: slice | None = None,
    ) -> Tensor:
        """The backbone, inside `stage`; the time of the taps' hooks goes to `observe`: observing pays for itself."""
        options: dict[str, Any] = {}
        if visible is not None:
            options["visible"] = visible.to(rows.device)
        if blocks is not None:
            options["blocks"] = blocks
        watching = [tap for tap in taps if tap is not None]
        if self._beside is not None and not watching and not options:
            return self._beside(rows, positions, cache)
        before = sum(tap.elapsed_ns for tap in watching)
        with ExitStack() as announced:
            for tap in watching:
                announced.enter_context(tap.rows(positions, held))
            hidden = self._policy.forward(rows, positions, cache, **options)
        if watching:
            self._clock.move(stage, "observe", step, sum(tap.elapsed_ns for tap in watching) - before)
        return hidden

    def _run_cut(
        self,
        stage: Stage,
        step: int,
        rows: Tensor,
        kept: Mask | Inside,
        tap: AttentionTap | None,
        cache: Cache | None = None,
    ) -> tuple[Tensor, Tensor, Mask]:
        """The whole sequence through the first blocks, then what stays of it through the others.

        Returns final hidden states, positions of the rows that stayed, and who stayed.
        """
        positions = torch.arange(len(rows))
        own = kept.tap if isinstance(kept, Inside) else None
        with own or nullcontext(), self._clock.stage(stage, step):
            rows = self._run(stage, step, rows, positions, (tap, own), cache, blocks=self._first)
        kept = _mask(kept)
        rows, positions = self._compact(step, rows, positions, kept)
        with self._clock.stage(stage, step):
            visible = self._visible(kept, positions, None)
            hidden = self._run(stage, step, rows, positions, (tap,), cache, None, visible, self._rest)
        return hidden, positions, kept


class FullForward(PassForward):
    """The whole sequence in every pass, as the release runs it."""

    def predict(
        self,
        step: int,
        prefix: Prefix,
        kept: Mask | Inside,
        sample: Tensor,
        tap: AttentionTap | None,
    ) -> Tensor:
        """See `PassForward.predict`."""
        if self._first is not None:
            with self._clock.stage("denoise", step):
                sequence = torch.cat([prefix.rows, self._policy.embed_tail(sample, step)])
            hidden, _, _ = self._run_cut("prefill", step, sequence, kept, tap)
        else:
            kept = _mask(kept)
            rows, positions = self._compact(step, prefix.rows, self._prefix_positions, kept)
            with self._clock.stage("denoise", step):
                tail = self._policy.embed_tail(sample, step)
            with self._clock.stage("prefill", step):
                sequence = torch.cat([rows, tail])
                positions = torch.cat([positions, self._tail_positions])
                visible = self._visible(kept, positions, None)
                hidden = self._run("prefill", step, sequence, positions, (tap,), visible=visible)
        with self._clock.stage("denoise", step):
            return self._policy.read_noise(hidden[len(hidden) - len(self._tail_positions) :][self._action])


@dataclass(slots=True)
class _Held:
    """A filled cache: positions of the rows that the first blocks (up to the cut) and the others hold, and `kept`.

    `visible`: what the tail sees in the first blocks and in the others, where rows are masked.
    """

    cache: Cache
    first: Tensor
    rest: Tensor
    kept: Mask
    visible: tuple[Tensor | None, Tensor | None]


class CachedForward(PassForward):
    """Keys and values of the kept prefix once, then the tail alone.

    Rows that are kept otherwise later prefill anew (`kv = reprefill`) or are cut out of the cache (`kv = drop`).
    """

    def __init__(
        self,
        policy: Policy,
        layout: TokenLayout,
        clock: StageClock,
        dropping: Dropping,
        beside: Beside | None = None,
    ) -> None:
        super().__init__(policy, layout, clock, dropping, beside)
        used = self._action.stop  # the tail token after the action is inert: nothing attends to it
        self._used = used
        start = layout.prefix_length
        self._tail_positions = torch.arange(start, start + invariant_rows(used))
        self._tail: Tensor | None = None
        self._held: _Held | None = None

    def predict(
        self,
        step: int,
        prefix: Prefix,
        kept: Mask | Inside,
        sample: Tensor,
        tap: AttentionTap | None,
    ) -> Tensor:
        """See `PassForward.predict`."""
        held = self._held
        if self._first is not None and held is None:
            hidden = self._prefill_with_tail(step, prefix, kept, sample, tap)
        else:
            kept = _mask(kept)
            if held is None or not np.array_equal(held.kept, kept):
                held = self._refill(step, prefix, kept, tap)
            with self._clock.stage("denoise", step):
                hidden = self._run_tail(step, self._embed_tail(sample, step), held, tap)
                held.cache.forget(len(self._tail_positions))
        with self._clock.stage("denoise", step):
            return self._policy.read_noise(hidden[len(hidden) - len(self._tail_positions) :][self._action])

    def _embed_tail(self, sample: Tensor, step: int) -> Tensor:
        """The rows before the inert one, in the buffer; the last of them fills it up to a batch-invariant number."""
        rows = self._policy.embed_tail(sample, step)[: self._used]
        if self._tail is None:
            self._tail = rows.new_empty(len(self._tail_positions), rows.shape[1])
        self._tail[: self._used] = rows
        self._tail[self._used :] = rows[-1]
        return self._tail

    def _run_tail(self, step: int, rows: Tensor, held: _Held, tap: AttentionTap | None) -> Tensor:
        positions, (first, rest) = self._tail_positions, held.visible
        if self._first is None or (tap is None and rest is None):
            return self._run("denoise", step, rows, positions, (tap,), held.cache, held.first, first)
        rows = self._run("denoise", step, rows, positions, (tap,), held.cache, held.first, first, self._first)
        return self._run("denoise", step, rows, positions, (tap,), held.cache, held.rest, rest, self._rest)

    def _refill(self, step: int, prefix: Prefix, kept: Mask, tap: AttentionTap | None) -> _Held:
        held = self._held
        if held is not None and self._dropping.cut_cache and bool(held.kept.all()):
            with self._clock.stage("compact", step):
                positions = held.first
                if not self._dropping.masked:
                    index = self._stays(kept)[positions].nonzero().flatten()
                    held.cache.select(index.to(prefix.rows.device))
                    positions = positions[index]
                return self._hold(held.cache, positions, positions, kept)
        rows, positions = self._compact(step, prefix.rows, self._prefix_positions, kept)
        self._read_earlier(step, tap)
        with self._clock.stage("prefill", step):
            cache = self._policy.new_cache(len(rows) + len(self._tail_positions))
            visible = self._visible(kept, positions, None)
            self._run("prefill", step, rows, positions, (tap,), cache, visible=visible)
            return self._hold(cache, positions, positions, kept)

    def _prefill_with_tail(
        self,
        step: int,
        prefix: Prefix,
        kept: Mask | Inside,
        sample: Tensor,
        tap: AttentionTap | None,
    ) -> Tensor:
        """Pass 0 of a step that is cut behind a block: what decides there may look at the tail's rows as well."""
        with self._clock.stage("denoise", step):
            sequence = torch.cat([prefix.rows, self._embed_tail(sample, step)])
        self._read_earlier(step, tap)
        with self._clock.stage("prefill", step):
            cache = self._policy.new_cache(len(sequence))
        hidden, positions, kept = self._run_cut("prefill", step, sequence, kept, tap, cache)
        cache.forget(len(self._tail_positions))
        rest = positions[: len(positions) - len(self._tail_positions)]
        self._hold(cache, self._prefix_positions, rest, kept)
        return hidden

    def _read_earlier(self, step: int, tap: AttentionTap | None) -> None:
        """Before a new cache: read what is still to be read of earlier ones, whose buffers a policy may use again."""
        waiting = unread(self._policy)
        if waiting or tap is not None:
            with self._clock.stage("observe", step):
                for deferred in waiting:
                    deferred.get()
                if tap is not None:
                    tap.settle()

    def _hold(self, cache: Cache, first: Tensor, rest: Tensor, kept: Mask) -> _Held:
        visible = self._visible(kept, self._tail_positions, rest)
        self._held = _Held(cache, first, rest, kept, (visible if self._first is None else None, visible))
        return self._held


def _mask(kept: Mask | Inside) -> Mask:
    return kept.decide() if isinstance(kept, Inside) else kept
