"""Rows that wait for their arithmetic, so that layers and passes can share it.

References to queries and keys are kept. Layers of one call are rebuilt together, and so are the passes over one cached
prefix. On the CPU, what holds little memory waits until somebody asks for the results.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tracekit.capture.calls import given_mask, held_keys, own_keys, rotary_of, scale_of, signed, single, visible
from tracekit.capture.extras import Extras
from tracekit.capture.plan import CallPlan
from tracekit.capture.rebuilding import LayerRows, TailRows, arithmetic, probabilities, tail_probabilities
from tracekit.capture.received import NOT_SEEN, Received
from tracekit.errors import PolicyError

__all__ = ["Call", "Waiting"]

PENDING_BYTES = 2**24
"""What may wait for its arithmetic; more would leave the processor's caches, and fill the memory behind a queue."""

PROJECTION = "the projection of an observed attention"

Rotary = tuple[Tensor, Tensor]


@dataclass(slots=True)
class Call:
    """One announced forward call, and what its first layer found out for all of them.

    `rotary`: cosine and sine, (n, d), as they are handed down. `in_place`: the keys that wait are those of a cache.
    """

    plan: CallPlan
    later: bool
    ran: bool = False
    rotary: Rotary | None = None
    given: object = None
    in_place: bool = False
    waiting: list[LayerRows] = field(default_factory=list)
    tails: TailRows | None = None


class Waiting:
    """Takes projections of announced calls, and gives their rows to `received` and `extras`.

    `reduction_ns`: time spent in the arithmetic that layers share.
    """

    def __init__(self, device: torch.device, received: Received, extras: Extras) -> None:
        self._device, self._received, self._extras = device, received, extras
        self._jobs: list[Callable[[], None]] = []
        self._tails: Call | None = None
        self._bytes = 0
        self.reduction_ns = 0

    @property
    def is_small(self) -> bool:
        """Whether little memory is held until `settle`."""
        tails = [] if self._tails is None or self._tails.tails is None else self._tails.tails.held
        return self._bytes + sum(keys.nbytes for keys in tails) <= PENDING_BYTES

    def announce(self, plan: CallPlan) -> None:
        """A call begins. Before one over another prefix, rows over the last one are rebuilt: it may change."""
        if self._tails is not None and plan is not self._tails.plan:
            self.settle()

    def end(self, call: Call) -> None:
        """A call ended."""
        if call.waiting and (self._device.type != "cpu" or (call.in_place and call.plan.feeds_tail)):
            self.settle()  # the next pass would write over the keys of this tail

    def add(self, job: Callable[[], None], nbytes: int) -> None:
        """Arithmetic of another kind that may wait, and what it holds until then."""
        self._jobs.append(job)
        self._bytes += nbytes
        if self._device.type != "cpu" or self._bytes > PENDING_BYTES:
            self.settle()

    def end_pass(self) -> None:
        """Later calls over the same prefix are another pass: their rows are rebuilt apart."""
        self._tails = None

    def take(
        self,
        call: Call,
        index: int,
        module: nn.Module,
        kwargs: Mapping[str, Any],
        query: Tensor,
        key: Tensor,
        *,
        wanted: bool,
        extra: bool,
    ) -> None:
        """Rows that are reduced at the end of their call, or before, where what waits is large."""
        plan = call.plan
        query, key = single(query, PROJECTION), single(key, PROJECTION)
        rotary = self._rotary(call, module, kwargs, key)
        call.in_place = kwargs.get("cache") is not None or plan.held > 0
        if call.in_place:
            keys = held_keys(module, kwargs, plan.keys)
        else:
            with arithmetic(self._device, key.numel()):
                keys = own_keys(key, rotary)
        scale = scale_of(module, keys.shape[-1])
        if wanted:
            if not call.waiting:
                self._jobs.append(lambda: self._reduce_waiting(call))
            bias = self._bias(call, module, kwargs, plan.wanted.index)
            call.waiting.append(LayerRows(index, plan.wanted.along(0, query), keys, scale, bias))
            self._bytes += keys.nbytes + query.nbytes
            if self._bytes > PENDING_BYTES:
                self.settle()
        if extra:

            def look() -> None:
                with arithmetic(self._device, len(plan.wanted) * plan.keys * query.shape[-1]):
                    self._extras.attended(
                        index,
                        plan,
                        query,
                        key,
                        keys,
                        rotary,
                        scale,
                        lambda rows: self._bias(call, module, kwargs, rows),
                    )

            if self._extras.whole_rows:
                look()
            else:
                self._jobs.append(look)

    def take_tail(
        self, call: Call, index: int, module: nn.Module, kwargs: Mapping[str, Any], query: Tensor, key: Tensor
    ) -> None:
        """Rows over a cached prefix wait for the other passes over it; all share the keys that the first one found."""
        if kwargs.get("output_attentions"):
            self._bias(call, module, kwargs, call.plan.wanted.index)
        first = self._tails or call
        if first.tails is None:
            self._tails, first.tails = first, TailRows([], [], [], [], [])
            self._jobs.append(lambda: self._reduce_tails(first))
        tails = first.tails
        if not tails.layers or index > tails.layers[-1]:  # the first pass
            self._rotary(first, module, kwargs, single(key, PROJECTION))
            held = held_keys(module, kwargs, call.plan.keys)[:, : call.plan.held]
            tails.layers.append(index)
            tails.held.append(held)
            tails.scales.append(scale_of(module, held.shape[-1]))
        elif index == tails.layers[0]:
            held_keys(module, kwargs, call.plan.keys)
        tails.queries.append(query)
        tails.keys.append(key)

    def settle(self) -> None:
        """Do all the arithmetic that waits, in the order in which it came."""
        jobs, self._jobs, self._tails, self._bytes = self._jobs, [], None, 0
        for job in jobs:
            job()

    def _rotary(self, call: Call, module: nn.Module, kwargs: Mapping[str, Any], key: Tensor) -> Rotary:
        """The call's rotary tables: the same in every layer, where the decoder hands them down."""
        given = kwargs.get("position_embeddings")
        if call.rotary is None or given is None or given is not call.given:
            call.rotary, call.given = rotary_of(module, kwargs, key), given
        return call.rotary

    def _bias(self, call: Call, module: nn.Module, kwargs: Mapping[str, Any], rows: Tensor) -> Tensor:
        plan = call.plan
        if given_mask(kwargs) is None and not kwargs.get("output_attentions") and rows is plan.wanted.index:
            return plan.bias
        return visible(module, kwargs, rows, plan.held, plan.keys)

    def _reduce_waiting(self, call: Call) -> None:
        """Rebuild the waiting rows of several layers of one call, and keep their means at the visual columns."""
        waiting, call.waiting = call.waiting, []
        if call.rotary is None:
            return
        start = time.perf_counter_ns()
        plan, (cos, sin) = call.plan, call.rotary
        with arithmetic(self._device, waiting[0].query.numel() * plan.keys):
            tables = plan.wanted.along(0, cos).float(), signed(plan.wanted.along(0, sin))
            attention = probabilities(waiting, tables)
            layers = [one.layer for one in waiting]
            if call.later:
                self._received.add_later(plan, layers, attention[:, :, None])
            else:
                self._received.add(plan, layers, attention)
        self.reduction_ns += time.perf_counter_ns() - start

    def _reduce_tails(self, call: Call) -> None:
        """Rebuild the rows of all passes over the same cached prefix, all layers of all passes at once."""
        tails, call.tails = call.tails, None
        if tails is None or call.rotary is None:
            return
        start = time.perf_counter_ns()
        plan, (cos, sin) = call.plan, call.rotary
        if len(tails.queries) % len(tails.layers):
            raise PolicyError(f"a denoise pass was seen in some layers only; {NOT_SEEN}")
        work = len(tails.queries) // len(tails.layers) * len(plan.wanted) * plan.keys * tails.queries[0].shape[-1]
        with arithmetic(self._device, work):
            bias = plan.bias[..., plan.held :]
            attention = tail_probabilities(tails, (cos.float(), signed(sin)), plan.wanted, bias)
            if call.later:
                self._received.add_later(plan, tails.layers, attention)
            else:
                for index in range(attention.shape[2]):
                    self._received.add(plan, tails.layers, attention[:, :, index])
        self.reduction_ns += time.perf_counter_ns() - start
