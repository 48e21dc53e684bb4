"""Attention received per visual token, rebuilt beside the fused kernel.

Fused attention never forms the attention matrix, and switching it off would change the run. So the tap leaves it alone:
it hooks the query and key projections of every `self_attn`, applies the rotary embedding to the few wanted query rows
and to the keys, and computes softmax(q·kᵀ/√d) for those rows only, over all causal keys. What is kept is the mean over
the rows of a query group, per head, at the visual columns, not renormalised.

The hooks keep references; the arithmetic waits until several layers, or passes over one cached prefix, can share it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tracekit.capture.calls import all_keys, given_mask, rotary_of, scale_of, single, visible
from tracekit.capture.extras import Extras
from tracekit.capture.plan import CallPlan, plan_of
from tracekit.capture.rebuilding import LayerRows, TailRows, full_precision, probabilities, received_later
from tracekit.capture.spec import CaptureSpec, Group, chosen
from tracekit.capture.structure import attention_modules, final_norm
from tracekit.capture.transfer import HostCopies
from tracekit.errors import PolicyError
from tracekit.layout import TokenLayout

__all__ = ["AttentionTap"]

PENDING_BYTES = 2**24
"""Keys that may wait for their layers to be reduced together; more would leave the processor's caches."""


@dataclass
class _Call:
    """One announced forward call, and what its first layer found out for all of them."""

    plan: CallPlan
    later: bool
    rotary: tuple[Tensor, Tensor] | None = None
    wanted_rotary: tuple[Tensor, Tensor] | None = None
    tails: list[TailRows] = field(default_factory=list)


class AttentionTap:
    """Takes observables out of forward passes. Use as a context manager; wrap every forward call in `rows(...)`.

    `groups`: query groups to rebuild. `spec`: layers, heads and whatever else to take of the first pass; by default all
    layers and heads, and norms. `head`: the vocabulary head, for norms of logits. After `follow`, the calls belong to a
    later pass, of which only the action rows are taken.

    `layers`: (l,) indices of the layers whose rows are rebuilt. `elapsed_ns`: time spent here, so that observing is
    charged to itself; `hooks_ns`: of it, per layer; `reduction_ns`: of it, in the arithmetic that layers share. `size`:
    layers and heads of the policy. `dtype`: of the
    projections, as they came out (autocast makes it another than the weights'); None before the first call.
    """

    def __init__(
        self,
        backbone: nn.Module,
        layout: TokenLayout,
        groups: Sequence[Group],
        spec: CaptureSpec | None = None,
        head: nn.Module | None = None,
    ) -> None:
        spec = spec or CaptureSpec("rows", last_row=False, qk_text_layer0=False)
        self._modules = attention_modules(backbone)
        self._norm = final_norm(backbone)
        self._device = next(backbone.parameters()).device
        self._layout, self._spec = layout, spec
        self._groups = tuple(group for group in groups if len(layout.group_positions(group)))
        self._visual = len(layout.visual_positions)
        self._extras = Extras(backbone, self._modules, layout, spec, head, self._device)
        self.layers = chosen(spec.layers, len(self._modules), "layers")
        self._rebuilt = set(range(len(self._modules))) if spec.last_row else set(self.layers if self._groups else ())
        self._copies = HostCopies(self._device)
        self._host: dict[str, Tensor] | None = None
        self._call: _Call | None = None
        self._later = False
        self._q: dict[int, Tensor] = {}
        self._k: dict[int, Tensor] = {}
        self._pending: list[LayerRows] = []
        self._handles: list[RemovableHandle] = []
        self._received: dict[str, dict[int, Tensor]] = {group: {} for group in self._groups}
        self._last_row: dict[int, Tensor] = {}
        self._tails: list[_Call] = []
        self._later_rows: list[Tensor] = []
        self.elapsed_ns = 0
        self.reduction_ns = 0
        self.hooks_ns = [0] * len(self._modules)
        self.size = (len(self._modules), 0)
        self.dtype: torch.dtype | None = None

    @property
    def heads(self) -> list[int]:
        """Indices of the heads whose rows are kept; known once a call has been seen."""
        return chosen(self._spec.heads, self.size[1], "heads")

    def __enter__(self) -> Self:
        for index, module in enumerate(self._modules):
            self._handles += [
                module.q_proj.register_forward_hook(self._keep(self._q, index)),  # type: ignore[union-attr]  # found by structure
                module.k_proj.register_forward_hook(self._keep(self._k, index)),  # type: ignore[union-attr]
                module.register_forward_hook(self._attended(index), with_kwargs=True),
            ]
        self._handles.append(self._norm.register_forward_hook(self._normed))
        self._handles += self._extras.hooks(lambda: None if self._call is None or self._later else self._call.plan)
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._q.clear()
        self._k.clear()
        self._pending.clear()

    def follow(self) -> None:
        """The calls from now on belong to a denoise pass after the first."""
        self._later = True

    @contextmanager
    def rows(self, positions: Tensor, held: Tensor | None = None) -> Iterator[None]:
        """Announce a forward call: `positions` (n,) int64 of the fed rows in the unpruned sequence, ascending.

        `held`: positions of the rows that a cache holds already; the fed rows attend to them too. Those rows of the
        cache must stay as they are until the next call with others, or until the results are asked for.
        """
        start = time.perf_counter_ns()
        call = _Call(plan_of(self._layout, positions, held, self._device), self._later)
        if self._tails and call.plan is not self._tails[0].plan:
            self._reduce_tails()
        self._call = call
        self._host = self._host if self._later else None
        self.elapsed_ns += time.perf_counter_ns() - start
        try:
            yield
            start = time.perf_counter_ns()
            self._reduce_pending()
            if call.tails and call.tails[0].layer and self._tails:
                self._tails[-1].tails += call.tails
            elif call.tails:
                self._tails.append(call)
            self.elapsed_ns += time.perf_counter_ns() - start
        finally:
            self._call = None
            self._pending.clear()

    @property
    def norms(self) -> dict[str, Tensor]:
        """Feature -> (N_visual,) float32 L1 norms of final-layer features.

        `prenorm`: the residual stream after the last block, `postnorm`: after the final norm, `logits`: the head's.
        """
        return self._named("norms/")

    @property
    def received(self) -> dict[str, Tensor]:
        """Group -> (l, heads, N_visual) float32, for groups of the layout; PolicyError if one was never fed.

        Zeros where a visual token was not among the keys. The visual axis is all image tokens, then all point tokens.
        """
        return self._named("received/")

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
        start = time.perf_counter_ns()
        self._reduce_tails()
        found = self._copies.start(torch.cat(self._later_rows)) if self._later_rows else None
        self._copies.wait()
        self.elapsed_ns += time.perf_counter_ns() - start
        return found

    def launch(self) -> None:
        """Start bringing the first pass's results to the host, without waiting; the properties wait."""
        results = {
            f"received/{group}": self._stacked(found, group, self.layers) for group, found in self._received.items()
        }
        results |= {f"norms/{feature}": values for feature, values in self._extras.norms.items()}
        results |= {f"extras/{name}": values for name, values in self._extras.results().items()}
        if self._spec.last_row and len(self._layout.group_positions("text")):
            results["last_row"] = self._stacked(self._last_row, "text", range(len(self._modules)))
        self._host = {name: self._copies.start(values) for name, values in results.items()}

    def _on_host(self) -> dict[str, Tensor]:
        if self._host is None:
            self.launch()
        self._copies.wait()
        return self._host or {}

    def _named(self, prefix: str) -> dict[str, Tensor]:
        found = self._on_host().items()
        return {name.removeprefix(prefix): values for name, values in found if name.startswith(prefix)}

    def _stacked(self, found: Mapping[int, Tensor], group: str, layers: Sequence[int]) -> Tensor:
        if any(layer not in found for layer in layers):
            raise PolicyError(
                f"no row of query group {group!r} went through the backbone; the layout does not fit the policy"
            )
        return torch.stack([found[layer] for layer in layers])

    def _keep(self, store: dict[int, Tensor], index: int) -> Any:
        def hook(_module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
            store[index] = single(output.detach(), "the projection of an observed attention")
            self.dtype = output.dtype

        return hook

    def _attended(self, index: int) -> Any:
        def hook(module: nn.Module, _inputs: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
            start = time.perf_counter_ns()
            call = self._announced()
            query, key = self._q.pop(index), self._k.pop(index)
            with full_precision(key.device):
                if call.later:
                    self._take_later(call, index, module, kwargs, query, key)
                else:
                    self._take(call, index, module, kwargs, query, key)
            spent = time.perf_counter_ns() - start
            self.hooks_ns[index] += spent
            self.elapsed_ns += spent

        return hook

    def _take(
        self, call: _Call, index: int, module: nn.Module, kwargs: dict[str, Any], query: Tensor, key: Tensor
    ) -> None:
        rebuilt = index in self._rebuilt and len(call.plan.wanted) > 0
        if not rebuilt and not self._extras.looks_at(index):
            return
        rotary = self._rotary(call, module, kwargs, key)
        keys = all_keys(module, kwargs, key, rotary, call.plan.keys)
        if rebuilt:
            self._wait(call, index, module, kwargs, query, keys)
        scale = scale_of(module, keys.shape[-1])
        self._extras.attended(
            index, call.plan, query, key, keys, rotary, scale, lambda rows: self._bias(call, module, kwargs, rows)
        )

    def _take_later(
        self, call: _Call, index: int, module: nn.Module, kwargs: dict[str, Any], query: Tensor, key: Tensor
    ) -> None:
        """Action rows over a cache wait until the last pass over it; others until the end of their call."""
        plan = call.plan
        if "action" not in plan.groups:
            return
        rotary = self._rotary(call, module, kwargs, key)
        keys = all_keys(module, kwargs, key, rotary, plan.keys)
        if not plan.held or given_mask(kwargs) is not None:
            self._wait(call, index, module, kwargs, query, keys)
            return
        self._bias(call, module, kwargs, plan.wanted)
        own = keys[:, plan.held :].clone()
        call.tails.append(
            TailRows(index, query[plan.wanted], keys[:, : plan.held], own, scale_of(module, keys.shape[-1]))
        )

    def _wait(
        self, call: _Call, index: int, module: nn.Module, kwargs: dict[str, Any], query: Tensor, keys: Tensor
    ) -> None:
        bias = self._bias(call, module, kwargs, call.plan.wanted)
        self._pending.append(LayerRows(index, query[call.plan.wanted], keys, scale_of(module, keys.shape[-1]), bias))
        if sum(one.keys.nbytes for one in self._pending) > PENDING_BYTES:
            self._reduce_pending()

    def _rotary(self, call: _Call, module: nn.Module, kwargs: dict[str, Any], key: Tensor) -> tuple[Tensor, Tensor]:
        """The call's rotary tables: the same in every layer, where the decoder hands them down."""
        if call.rotary is None or kwargs.get("position_embeddings") is None:
            call.rotary = rotary_of(module, kwargs, key)
            call.wanted_rotary = (call.rotary[0][call.plan.wanted], call.rotary[1][call.plan.wanted])
        return call.rotary

    def _bias(self, call: _Call, module: nn.Module, kwargs: dict[str, Any], rows: Tensor) -> Tensor:
        if given_mask(kwargs) is None and not kwargs.get("output_attentions") and rows is call.plan.wanted:
            return call.plan.bias
        return visible(module, kwargs, rows, call.plan.held, call.plan.keys)

    def _reduce_pending(self) -> None:
        """Rebuild the waiting rows of several layers, and keep their means at the visual columns."""
        call = self._call
        if not self._pending or call is None or call.wanted_rotary is None:
            return
        start = time.perf_counter_ns()
        plan = call.plan
        with full_precision(plan.columns.device):
            attention = probabilities(self._pending, call.wanted_rotary)
        self.size = (len(self._modules), attention.shape[1])
        layers = [one.layer for one in self._pending]
        self._pending = []
        if call.later:
            rows = attention[:, :, plan.groups["action"]].mean((1, 2))
            self._keep_later(layers, self._placed(rows, plan))
        else:
            for group, place in plan.groups.items():
                if group in self._received:
                    mean = self._placed(attention[:, :, place].mean(2), plan)
                    mean = mean if len(self.heads) == self.size[1] else mean[:, self.heads]
                    self._received[group].update(
                        (layer, mean[i]) for i, layer in enumerate(layers) if layer in self.layers
                    )
            if self._spec.last_row and plan.last_text is not None:
                last = self._placed(attention[:, :, plan.last_text].mean(1), plan)
                self._last_row.update((layer, last[i]) for i, layer in enumerate(layers))
        self.reduction_ns += time.perf_counter_ns() - start

    def _keep_later(self, layers: Sequence[int], rows: Tensor) -> None:
        """Layers of one pass come in order, possibly in parts."""
        if layers[0] == 0:
            self._later_rows.append(rows[None])
        else:
            self._later_rows[-1] = torch.cat([self._later_rows[-1], rows[None]], dim=1)

    def _reduce_tails(self) -> None:
        if not self._tails:
            return
        start = time.perf_counter_ns()
        first = self._tails[0]
        plan, action, rotary = first.plan, first.plan.groups["action"], first.wanted_rotary
        if rotary is None or any(len(call.tails) != len(first.tails) for call in self._tails):
            raise PolicyError(
                "a denoise pass went through some layers only; the backbone's calls do not fit its layers"
            )
        with full_precision(plan.columns.device):
            found = received_later(
                [call.tails for call in self._tails], rotary, plan.bias[..., plan.held :], plan.columns, action
            )
        placed = self._placed(found, plan, columns_taken=True)
        if first.tails[0].layer == 0:
            self._later_rows.append(placed)
        else:  # the later layers of a pass whose rows were cut in between
            self._later_rows[-1] = torch.cat([self._later_rows[-1], placed], dim=1)
        self._tails.clear()
        self.reduction_ns += time.perf_counter_ns() - start

    def _placed(self, rows: Tensor, plan: CallPlan, *, columns_taken: bool = False) -> Tensor:
        """(…, keys) or (…, m) -> (…, N_visual), zeros for visual tokens that are no keys."""
        values = rows if columns_taken else rows[..., plan.columns]
        if len(plan.targets) == self._visual:
            return values
        out = values.new_zeros(*values.shape[:-1], self._visual)
        out[..., plan.targets] = values
        return out

    def _normed(self, _module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        start = time.perf_counter_ns()
        call = self._announced()
        if not call.later:
            self._extras.normed(call.plan, inputs[0], output)
        self.elapsed_ns += time.perf_counter_ns() - start

    def _announced(self) -> _Call:
        if self._call is None:
            raise PolicyError(
                "the backbone ran while tapped, but its rows were not announced; wrap the call in tap.rows(positions)"
            )
        return self._call
