"""Attention received per visual token, rebuilt beside the fused kernel.

Fused attention never forms the attention matrix, and switching it off would change the run. So the tap leaves it alone:
it hooks the query and key projections of every `self_attn`, applies the rotary embedding to the few wanted query rows
and to the keys, and computes softmax(q·kᵀ/√d) for those rows only, over all causal keys. What is kept is the mean over
the rows of a query group, per head, at the visual columns, not renormalised.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tracekit.capture.calls import all_keys, apply_rotary, rotary_of, scale_of, single, visible
from tracekit.capture.structure import attention_modules, final_norm
from tracekit.errors import PolicyError
from tracekit.layout import TokenLayout

__all__ = ["AttentionTap"]


@dataclass
class _Call:
    """Which rows one forward call feeds, and which of them are wanted."""

    held: int  # keys that were there before the fed rows
    keys: int  # all keys, the fed rows' own included
    queries: Mapping[str, Tensor]  # group -> (r,) indices into the fed rows
    columns: Tensor  # (m,) indices of the visual columns among all keys
    targets: Tensor  # (m,) the same columns, as indices of the visual axis


class AttentionTap:
    """Collects one denoise pass. Use as a context manager; inside, wrap every forward call in `rows(...)`.

    `received[group]`: (layers, heads, N_visual) float32, zeros where a visual token was not among the keys; the visual
    axis is all image tokens, then all point tokens (`TokenLayout.visual_positions`). `norms[feature]`: (N_visual,)
    float32 L1 norms of the residual stream after the last block (`prenorm`) and after the final norm (`postnorm`).
    `elapsed_ns`: time spent in the hooks, so that observing is charged to itself. `dtype`: of the projections, as they
    came out (autocast makes it another than the weights'); None before the first call.
    """

    def __init__(self, backbone: nn.Module, layout: TokenLayout, groups: Sequence[str]) -> None:
        self._layers = attention_modules(backbone)
        self._norm = final_norm(backbone)
        self._device = next(backbone.parameters()).device
        self._layout = layout
        self._groups = tuple(group for group in groups if len(layout.group_positions(group)))
        self._visual = torch.from_numpy(layout.visual_positions).to(self._device)
        self._call: _Call | None = None
        self._q: dict[int, Tensor] = {}
        self._k: dict[int, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        self._received: dict[str, list[Tensor | None]] = {group: [None] * len(self._layers) for group in self._groups}
        self._norms: dict[str, Tensor] = {}
        self.elapsed_ns = 0
        self.dtype: torch.dtype | None = None

    def __enter__(self) -> Self:
        for index, module in enumerate(self._layers):
            self._handles += [
                module.q_proj.register_forward_hook(self._keep(self._q, index)),  # type: ignore[union-attr]  # found by structure
                module.k_proj.register_forward_hook(self._keep(self._k, index)),  # type: ignore[union-attr]
                module.register_forward_hook(self._rebuild(index), with_kwargs=True),
            ]
        self._handles.append(self._norm.register_forward_hook(self._feature_norms))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._q.clear()
        self._k.clear()

    @contextmanager
    def rows(self, positions: Tensor, held: Tensor | None = None) -> Iterator[None]:
        """Announce a forward call: `positions` (n,) int64 of the fed rows in the unpruned sequence, ascending.

        `held`: positions of the rows that a cache holds already; the fed rows attend to them too.
        """
        start = time.perf_counter_ns()
        positions = positions.to(self._device)
        keys = positions if held is None else torch.cat([held.to(self._device), positions])
        column_of = torch.full(
            (max(self._layout.length, int(keys[-1]) + 1),), -1, dtype=torch.long, device=self._device
        )
        column_of[keys] = torch.arange(len(keys), device=self._device)
        columns = column_of[self._visual]
        queries = {}
        for group in self._groups:
            members = torch.from_numpy(self._layout.group_positions(group)).to(self._device)
            wanted = torch.isin(positions, members)
            if bool(wanted.any()):
                queries[group] = wanted.nonzero().flatten()
        present = columns >= 0
        self._call = _Call(
            len(keys) - len(positions), len(keys), queries, columns[present], present.nonzero().flatten()
        )
        self.elapsed_ns += time.perf_counter_ns() - start
        try:
            yield
        finally:
            self._call = None

    @property
    def norms(self) -> dict[str, Tensor]:
        """Feature -> (N_visual,) float32 L1 norms."""
        return {feature: values.cpu() for feature, values in self._norms.items()}

    @property
    def received(self) -> dict[str, Tensor]:
        """Group -> (layers, heads, N_visual) float32, for groups of the layout; PolicyError if one was never fed."""
        found: dict[str, Tensor] = {}
        for group, layers in self._received.items():
            present = [layer for layer in layers if layer is not None]
            if len(present) != len(layers):
                raise PolicyError(
                    f"no row of query group {group!r} went through the backbone; the layout does not fit the policy"
                )
            found[group] = torch.stack(present).cpu()
        return found

    def _keep(self, store: dict[int, Tensor], index: int) -> Any:
        def hook(_module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
            store[index] = single(output.detach(), "the projection of an observed attention")
            self.dtype = output.dtype

        return hook

    def _rebuild(self, index: int) -> Any:
        def hook(module: nn.Module, _inputs: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
            start = time.perf_counter_ns()
            call = self._announced()
            query, key = self._q.pop(index), self._k.pop(index)
            if call.queries:
                rotary = rotary_of(module, kwargs, key)
                keys = all_keys(module, kwargs, key, rotary, call.keys)
                for group, rows in call.queries.items():
                    q = apply_rotary(_heads(query[rows], keys.shape[-1]), *(part[rows] for part in rotary))
                    bias = visible(module, kwargs, rows, call.held, keys.shape[1])
                    self._received[group][index] = self._mean_rows(q, keys, scale_of(module, keys.shape[-1]), bias)
            self.elapsed_ns += time.perf_counter_ns() - start

        return hook

    def _mean_rows(self, q: Tensor, keys: Tensor, scale: float, bias: Tensor) -> Tensor:
        """(heads, N_visual) mean attention of rotated queries (heads, r, d) over `keys` (kv_heads, n, d)."""
        call = self._announced()
        k = keys.repeat_interleave(q.shape[0] // keys.shape[0], dim=0)
        logits = q @ k.transpose(-1, -2) * scale + bias
        mean: Tensor = logits.softmax(-1).mean(1)
        out = mean.new_zeros(mean.shape[0], len(self._visual))
        out[:, call.targets] = mean[:, call.columns]
        return out

    def _feature_norms(self, _module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        start = time.perf_counter_ns()
        call = self._announced()
        own = call.columns - call.held
        here = own >= 0
        if bool(here.any()):
            for name, rows in (("prenorm", inputs[0]), ("postnorm", output)):
                hidden = single(rows.detach(), "the input of the final norm")
                norms = self._norms.setdefault(name, torch.zeros(len(self._visual), device=self._device))
                norms[call.targets[here]] = hidden[own[here]].float().abs().sum(-1)
        self.elapsed_ns += time.perf_counter_ns() - start

    def _announced(self) -> _Call:
        if self._call is None:
            raise PolicyError(
                "the backbone ran while tapped, but its rows were not announced; wrap the call in tap.rows(positions)"
            )
        return self._call


def _heads(rows: Tensor, width: int) -> Tensor:
    """(r, heads·width) -> (heads, r, width)."""
    return rows.view(len(rows), -1, width).transpose(0, 1)
