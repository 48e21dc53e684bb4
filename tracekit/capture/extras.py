"""What is taken of the first pass beside the rows of the query groups: norms, whole maps and their summaries, hidden
states.
"""  # noqa: D205  # one sentence

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tracekit.capture.calls import signed, single
from tracekit.capture.plan import CallPlan
from tracekit.capture.rebuilding import LayerRows, probabilities
from tracekit.capture.spec import CaptureSpec, chosen
from tracekit.capture.structure import blocks_of
from tracekit.errors import PolicyError
from tracekit.layout import TokenLayout

__all__ = ["Extras"]

Rotary = tuple[Tensor, Tensor]


class Extras:
    """Fed by the hooks of an `AttentionTap`.

    `norms`: feature -> (N_visual,) float32. `maps`: layers whose whole maps are taken; `whole_rows`: whether
    attention of all rows is. `results()`: `qk_text_layer0` (N,), `mean_all_rows` (layers, N),
    `attention_entropy` (layers,) nats, `maps` (layers, heads, L, L) float16 and `hidden/<site>` (layers, L, D) float32
    at positions of the unpruned sequence, zeros at rows that were not fed; each where the specification asks for it.
    """

    def __init__(
        self,
        backbone: nn.Module,
        attentions: list[nn.Module],
        layout: TokenLayout,
        spec: CaptureSpec,
        head: nn.Module | None,
        device: torch.device,
    ) -> None:
        count = len(attentions)
        self._spec, self._head, self._device = spec, head, device
        self._visual, self._length = len(layout.visual_positions), layout.length
        self._attentions = attentions
        self.whole_rows = spec.whole_rows
        self._summarises = spec.mean_all_rows or spec.attention_entropy
        self.maps = chosen(spec.maps, count, "layers")
        self._blocks = blocks_of(backbone, attentions) if spec.hidden else []
        self._hidden_layers = chosen(spec.hidden_layers, count, "layers") if spec.hidden else []
        if "logits" in spec.norms and head is None:
            raise PolicyError("norms of logits need the vocabulary head; leave `logits` out of the capture")
        self.norms: dict[str, Tensor] = {}
        self._qk: Tensor | None = None
        self._summed: dict[int, Tensor] = {}
        self._entropy: dict[int, Tensor] = {}
        self._averaged: dict[int, int] = {}
        self._map: dict[int, Tensor] = {}
        self._hidden: dict[str, dict[int, Tensor]] = {site: {} for site in spec.hidden}

    def hooks(self, announced: Callable[[], CallPlan | None]) -> list[RemovableHandle]:
        """Install what hidden states need; `announced` gives the plan of the running call, None for a later pass."""
        handles = []
        for layer in self._hidden_layers:
            block = self._blocks[layer]
            modules = {"block": block, "attention": self._attentions[layer], "mlp": block.mlp}
            for site, kept in self._hidden.items():
                module: nn.Module = modules[site]  # type: ignore[assignment]  # blocks_of has seen that mlp is a module
                handles.append(module.register_forward_hook(self._keep_hidden(kept, layer, announced)))
        return handles

    def looks_at(self, layer: int, plan: CallPlan) -> bool:
        """Whether the queries and keys of `layer` are needed in this call."""
        if layer in self.maps or (self._summarises and len(plan.prefix_rows) > 0):
            return True
        return layer == 0 and self._spec.qk_text_layer0 and "text" in plan.groups

    def attended(
        self,
        layer: int,
        plan: CallPlan,
        query: Tensor,
        key: Tensor,
        keys: Tensor,
        rotary: Rotary,
        scale: float,
        bias_of: Callable[[Tensor], Tensor],
    ) -> None:
        """One layer's projections `query`, `key` (fed rows, not rotated) and all its rotated `keys`."""
        if layer == 0 and self._spec.qk_text_layer0 and "text" in plan.groups:
            self._qk = self._text_products(plan, query, key, keys.shape[-1], scale)
        summarised = self._summarises and len(plan.prefix_rows) > 0
        if not summarised and layer not in self.maps:
            return
        every = torch.arange(plan.fed, device=self._device)
        tables = rotary[0].float(), signed(rotary[1])
        whole = probabilities([LayerRows(layer, query, keys, scale, bias_of(every))], tables)[0]
        if summarised:
            self._summarise(layer, plan, whole[:, plan.prefix_rows])
        if layer in self.maps:
            full = self._map.get(layer)
            if full is None:
                full = whole.new_zeros(whole.shape[0], self._length, self._length, dtype=torch.float16)
                self._map[layer] = full
            inside = whole[:, plan.placed, : len(plan.key_places)].half()
            full[:, plan.places[:, None], plan.key_places] = inside

    def normed(self, plan: CallPlan, residual: Tensor, output: Tensor) -> None:
        """The final norm's input and output."""
        if not len(plan.own_visual):
            return
        found = {"prenorm": residual, "postnorm": output}
        for feature in self._spec.norms:
            rows = single(found.get(feature, output).detach(), "the input of the final norm")
            if feature == "logits" and self._head is not None:
                rows = self._head(rows[plan.own_visual.sources])
                numbers = rows.new_zeros(plan.fed, dtype=torch.float32)
                numbers[plan.own_visual.sources] = rows.float().abs().sum(-1)
            else:
                numbers = rows.float().abs().sum(-1)
            norms = self.norms.setdefault(feature, numbers.new_zeros(self._visual))
            plan.own_visual.copy(numbers, norms)

    def results(self) -> dict[str, Tensor]:
        """Name -> values."""
        found: dict[str, Tensor] = {}
        if self._qk is not None:
            found["qk_text_layer0"] = self._qk
        for name, wanted, sums in (
            ("mean_all_rows", self._spec.mean_all_rows, self._summed),
            ("attention_entropy", self._spec.attention_entropy, self._entropy),
        ):
            if wanted and sums:
                found[name] = torch.stack([sums[layer] / self._averaged[layer] for layer in sorted(sums)]).float()
        if self._map:
            found["maps"] = torch.stack([self._map[layer] for layer in self.maps])
        for site, kept in self._hidden.items():
            if kept:
                found[f"hidden/{site}"] = torch.stack([kept[layer] for layer in self._hidden_layers])
        return found

    def _text_products(self, plan: CallPlan, query: Tensor, key: Tensor, size: int, scale: float) -> Tensor:
        """(N_visual,) mean over text rows and heads of q·k/√d; being linear, it is taken of q, before the keys."""
        text = plan.wanted.along(0, query)[plan.groups["text"]].float()
        shared = text.sum(0).view(key.shape[-1] // size, -1, size).sum(1).flatten()
        heads = query.shape[-1] // size
        products = key.float() @ shared * (scale / (heads * len(text)))
        out = products.new_zeros(self._visual)
        plan.own_visual.copy(products, out)
        return out

    def _summarise(self, layer: int, plan: CallPlan, rows: Tensor) -> None:
        """Add prefix rows (heads, r, keys) to the layer's sums, in float64: a mean of thousands of shares."""
        heads, count, _ = rows.shape
        self._averaged[layer] = self._averaged.get(layer, 0) + heads * count
        summed = self._summed.setdefault(layer, torch.zeros(self._visual, dtype=torch.float64, device=rows.device))
        summed[plan.columns.targets] += rows.sum((0, 1), dtype=torch.float64)[plan.columns.sources]
        entropy = torch.special.entr(rows).sum(dtype=torch.float64)
        self._entropy[layer] = self._entropy.get(layer, torch.zeros_like(entropy)) + entropy

    def _keep_hidden(self, kept: dict[int, Tensor], layer: int, announced: Callable[[], CallPlan | None]) -> Any:
        def hook(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
            plan = announced()
            if plan is None:
                return
            rows = single((output[0] if isinstance(output, tuple) else output).detach(), "a hidden state")
            whole = kept.setdefault(layer, torch.zeros(self._length, rows.shape[-1], device=rows.device))
            whole[plan.places] = rows[plan.placed].float()

        return hook
