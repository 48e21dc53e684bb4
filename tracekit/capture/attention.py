"""Attention received per visual token, rebuilt beside the fused kernel.

Fused attention never forms the attention matrix, and switching it off would change the run. So the tap leaves it alone:
it hooks the query and key projections of every `self_attn`, applies the rotary embedding to the few wanted query rows
and to the keys, and computes softmax(q·kᵀ/√d) for those rows only, over all causal keys. What is kept is the mean over
the rows of a query group, per head, at the visual columns, not renormalised.

The hooks keep references; the arithmetic waits until several layers, or passes over one cached prefix, can share it. On
the CPU, what holds little memory waits until somebody asks for the results.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tracekit.capture.calls import given_mask
from tracekit.capture.extras import Extras
from tracekit.capture.plan import CallPlan, plan_of
from tracekit.capture.rebuilding import arithmetic
from tracekit.capture.received import NOT_SEEN, Received
from tracekit.capture.spec import CaptureSpec, Group
from tracekit.capture.structure import attention_modules, attribute, final_norm
from tracekit.capture.transfer import HostCopies
from tracekit.capture.waiting import Call, Waiting
from tracekit.errors import PolicyError
from tracekit.layout import TokenLayout

__all__ = ["AttentionTap"]


class AttentionTap:
    """Takes observables out of forward passes. Use as a context manager; wrap every forward call in `rows(...)`.

    `groups`: query groups to rebuild. `spec`: layers, heads and whatever else to take of the first pass; by default all
    layers and heads, and norms. `head`: the vocabulary head, for norms of logits. After `follow`, the calls belong to a
    later pass, of which only the action rows are taken.

    Of a call over a cache, references to the cache's keys are kept until `settle`, or until the results are asked for.

    `spec`: what is taken. `layers`: (l,) indices of the layers whose rows are rebuilt. `elapsed_ns`: time spent here,
    so that observing is charged to itself; `hooks_ns`: of it, per layer. `dtype`: of the projections, as they came out
    (autocast makes it another than the weights'); None before the first call.
    """

    def __init__(
        self,
        backbone: nn.Module,
        layout: TokenLayout,
        groups: Sequence[Group],
        spec: CaptureSpec | None = None,
        head: nn.Module | None = None,
    ) -> None:
        self.spec = spec = spec or CaptureSpec("rows", last_row=False, qk_text_layer0=False)
        self._modules = attention_modules(backbone)
        self._norm = final_norm(backbone)
        self._device = next(backbone.parameters()).device
        self._layout = layout
        present = tuple(group for group in groups if len(layout.group_positions(group)))
        self._received = Received(layout, spec, present, len(self._modules))
        self._extras = Extras(backbone, self._modules, layout, spec, head, self._device)
        self._waiting = Waiting(self._device, self._received, self._extras)
        wanted = range(len(self._modules)) if spec.last_row else self.layers if present else ()
        self._rebuilt = frozenset(wanted)
        self._copies = HostCopies(self._device)
        self._host: dict[str, Tensor] | None = None
        self._call: Call | None = None
        self._recent: tuple[Tensor, Tensor | None, CallPlan] | None = None
        self._later = False
        self._q: list[Tensor | None] = [None] * len(self._modules)
        self._k: list[Tensor | None] = [None] * len(self._modules)
        self._handles: list[RemovableHandle] = []
        self._is_own = False
        self.elapsed_ns = 0
        self.hooks_ns = [0] * len(self._modules)
        self.dtype: torch.dtype | None = None

    @property
    def reduction_ns(self) -> int:
        """Time spent in the arithmetic that layers share."""
        return self._waiting.reduction_ns

    @property
    def layers(self) -> list[int]:
        """Indices of the layers whose rows are kept."""
        return self._received.layers

    @property
    def heads(self) -> list[int]:
        """Indices of the heads whose rows are kept; known once a call has been seen."""
        return self._received.kept_heads

    @property
    def groups(self) -> tuple[str, ...]:
        """Query groups that are rebuilt: those asked for that the layout has."""
        return self._received.groups

    @property
    def size(self) -> tuple[int, int]:
        """Layers and heads of the policy; the heads are 0 before rows were rebuilt."""
        return len(self._modules), self._received.heads

    def __enter__(self) -> Self:
        for index, module in enumerate(self._modules):
            observers = attribute(module, "observers")
            if isinstance(observers, list):
                observers.append(partial(self._saw, index, module))
            else:
                self._hook(index, module)
        self._is_own = not self._handles
        self._handles.append(self._norm.register_forward_hook(self._normed))
        self._handles += self._extras.hooks(lambda: None if self._call is None or self._later else self._call.plan)
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for module in self._modules:
            observers = attribute(module, "observers")
            if isinstance(observers, list):
                observers[:] = [one for one in observers if getattr(one, "func", None) != self._saw]
        self._q[:] = self._k[:] = [None] * len(self._modules)

    def follow(self) -> None:
        """The calls from now on belong to a denoise pass after the first."""
        self._waiting.end_pass()
        self._later = True

    def adopt(self, other: AttentionTap) -> None:
        """What `other` saw of the first pass, of the same policy and with the same specification, as if seen here."""
        self._received, self._extras, self._waiting = other._received, other._extras, other._waiting
        self._host, self.dtype = other._host, other.dtype

    @contextmanager
    def rows(self, positions: Tensor, held: Tensor | None = None) -> Iterator[None]:
        """Announce a forward call: `positions` (n,) int64 of the fed rows in the unpruned sequence, ascending.

        `held`: positions of the rows that a cache holds already; the fed rows attend to them too. Those rows of the
        cache must stay as they are until the next call with others, or until the results are asked for.
        """
        start = time.perf_counter_ns()
        plan = self._planned(positions, held)
        self._waiting.announce(plan)
        call = self._call = Call(plan, self._later)
        self._host = self._host if self._later else None
        self.elapsed_ns += time.perf_counter_ns() - start
        try:
            yield
            start = time.perf_counter_ns()
            if not call.ran:
                raise PolicyError(f"no attention layer of the announced call was seen; {NOT_SEEN}")
            self._waiting.end(call)
            self.elapsed_ns += time.perf_counter_ns() - start
        finally:
            self._call = None

    @property
    def norms(self) -> dict[str, Tensor]:
        """Feature -> (N_visual,) float32 L1 norms of final-layer features.

        `prenorm`: the residual stream after the last block, `postnorm`: after the final norm, `logits`: the head's.
        """
        return self._named("norms/")

    @property
    def attention(self) -> Tensor | None:
        """(l, heads, groups, N_visual) float32, for the layout's `groups`; PolicyError if one was never fed.

        Zeros where a visual token was not among the keys. The visual axis is all image tokens, then all point tokens.
        """
        return self._on_host().get("attention")

    @property
    def last_row(self) -> Tensor | None:
        """(layers, N_visual) float32 head mean of the last text row; None where it is not wanted."""
        return self._on_host().get("last_row")

    @property
    def extras(self) -> dict[str, Tensor]:
        """What else the specification asks for, by name; see `tracekit.capture.extras.Extras`."""
        return self._named("extras/")

    @property
    def received_later(self) -> Tensor | None:
        """(passes - 1, layers, N_visual) float32 head means of the action rows after `follow`; None without any."""
        self._waiting.settle()
        later = self._received.later()
        found = None if later is None else self._copies.start(later)
        self._copies.wait()
        return found

    @property
    def can_wait(self) -> bool:
        """Whether the results may be asked for later, by another thread even: little memory is held until then."""
        # The precision of products belongs to the process: another thread must not set it while the policy runs.
        precise = torch.get_float32_matmul_precision() == "highest"
        return precise and self._device.type == "cpu" and self._waiting.is_small

    def settle(self) -> None:
        """Read what waits of the caches of earlier calls, which may change from now on."""
        self._waiting.settle()

    def launch(self, *, now: bool = True) -> None:
        """Start bringing the first pass's results to the host, without waiting; the properties wait.

        Not `now`: only on a device, where the copies are to overlap with the later passes.
        """
        if not now and self._device.type == "cpu":
            return
        self._waiting.settle()
        results = {"attention": self._received.rows(), "last_row": self._received.last_row()}
        results |= {f"norms/{feature}": values for feature, values in self._extras.norms.items()}
        results |= {f"extras/{name}": values for name, values in self._extras.results().items()}
        self._host = {name: self._copies.start(values) for name, values in results.items() if values is not None}

    def _on_host(self) -> dict[str, Tensor]:
        if self._host is None:
            self.launch()
        self._copies.wait()
        return self._host or {}

    def _named(self, prefix: str) -> dict[str, Tensor]:
        found = self._on_host().items()
        return {name.removeprefix(prefix): values for name, values in found if name.startswith(prefix)}

    def _planned(self, positions: Tensor, held: Tensor | None) -> CallPlan:
        """The call's plan; passes over one cache repeat it, which is cheap to see."""
        if self._recent is not None:
            before, held_before, plan = self._recent
            if held is held_before and (positions is before or torch.equal(positions, before)):
                return plan
        plan = plan_of(self._layout, positions, held, self._device)
        self._recent = positions, held, plan
        return plan

    def _hook(self, index: int, module: nn.Module) -> None:
        def keep(store: list[Tensor | None]) -> Any:
            def hook(_module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
                store[index] = output.detach() if output.requires_grad else output

            return hook

        def attended(_module: nn.Module, _inputs: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
            query, key = self._q[index], self._k[index]
            self._q[index] = self._k[index] = None
            self._announced()
            if query is None or key is None:
                raise PolicyError(
                    f"q_proj and k_proj of attention {type(module).__name__}, layer {index}, were not seen; {NOT_SEEN}"
                )
            self._saw(index, module, query, key, kwargs)

        self._handles += [
            module.q_proj.register_forward_hook(keep(self._q)),  # type: ignore[union-attr]  # found by structure
            module.k_proj.register_forward_hook(keep(self._k)),  # type: ignore[union-attr]
            module.register_forward_hook(attended, with_kwargs=True),
        ]

    def _saw(self, index: int, module: nn.Module, query: Tensor, key: Tensor, kwargs: Mapping[str, Any]) -> None:
        """One layer's projections, as they came out, and the keyword arguments of its attention."""
        start = time.perf_counter_ns()
        call = self._announced()
        call.ran, plan = True, call.plan
        if call.later:
            wanted, extra = "action" in plan.groups, False
        else:
            wanted, extra = index in self._rebuilt and len(plan.wanted) > 0, self._extras.looks_at(index, plan)
        if wanted or extra:
            self.dtype = query.dtype
            together = call.later or not self._extras.maps  # layers whose maps are taken cannot wait
            if wanted and not extra and together and plan.held and given_mask(kwargs) is None:
                self._waiting.take_tail(call, index, module, kwargs, query, key)
            else:
                self._waiting.take(call, index, module, kwargs, query, key, wanted=wanted, extra=extra)
        spent = time.perf_counter_ns() - start
        self.hooks_ns[index] += spent
        self.elapsed_ns += spent

    def _normed(self, _module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        start = time.perf_counter_ns()
        call = self._announced()
        if not call.later and len(call.plan.own_visual):

            def norms(plan: CallPlan = call.plan, residual: Tensor = inputs[0]) -> None:
                with arithmetic(self._device, output.numel()):
                    self._extras.normed(plan, residual, output)

            # Only the toolkit's own decoder is known to leave its output as it is.
            if self._is_own:
                self._waiting.add(norms, output.nbytes + inputs[0].nbytes)
            else:
                norms()
        self.elapsed_ns += time.perf_counter_ns() - start

    def _announced(self) -> Call:
        if self._call is None:
            raise PolicyError(
                "the backbone ran while tapped, but its rows were not announced; wrap the call in tap.rows(positions)"
            )
        return self._call
