"""Where rebuilt rows are collected: of pass 0 by layer, head and query group, of later passes the action rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tracekit.capture.plan import CallPlan
from tracekit.capture.spec import CaptureSpec, chosen
from tracekit.errors import PolicyError
from tracekit.layout import TokenLayout

__all__ = ["NOT_SEEN", "Received"]

NOT_SEEN = "what is compiled or graph-captured runs no hooks: pass the model as it was before"


class Received:
    """Attention received per visual token. `layers`: indices kept of `count`; `groups`: those that the layout has.

    The visual axis is all image tokens, then all point tokens; zeros where a visual token was not among the keys.
    `heads`: how many the policy has; known once rows were added.
    """

    def __init__(self, layout: TokenLayout, spec: CaptureSpec, groups: tuple[str, ...], count: int) -> None:
        self._spec, self._count = spec, count
        self._visual = len(layout.visual_positions)
        self._text = len(layout.group_positions("text")) > 0
        self.groups = groups
        self.layers = chosen(spec.layers, count, "layers")
        self.heads = 0
        self._rows: Tensor | None = None
        self._last: Tensor | None = None
        self._seen: dict[str, set[int]] = {group: set() for group in groups}
        self._seen_last: set[int] = set()
        self._later: list[Tensor] = []

    @property
    def kept_heads(self) -> list[int]:
        """Indices of the heads that are kept."""
        return chosen(self._spec.heads, self.heads, "heads")

    def add(self, plan: CallPlan, layers: Sequence[int], attention: Tensor) -> None:
        """Wanted rows of pass 0, (l, heads, r, keys), of `layers`, ascending."""
        self.heads = attention.shape[1]
        kept = [place for place, layer in enumerate(layers) if layer in self.layers]
        for axis, group in enumerate(self.groups if kept else ()):
            if group in plan.groups:
                means = _mean(attention, 2, plan.groups[group])
                means = means if len(kept) == len(layers) else means[kept]
                means = means if self._spec.heads == "all" else means[:, self.kept_heads]
                if self._rows is None:
                    shape = len(self.layers), means.shape[1], len(self.groups), self._visual
                    self._rows = means.new_zeros(shape)
                plan.columns.copy(means, self._rows[_at([self.layers.index(layers[place]) for place in kept]), :, axis])
                self._seen[group].update(layers[place] for place in kept)
        if self._spec.last_row and plan.last_text is not None:
            if self._last is None:
                self._last = attention.new_zeros(self._count, self._visual)
            plan.columns.copy(attention[:, :, plan.last_text].mean(1), self._last[_at(layers)])
            self._seen_last.update(layers)

    def add_later(self, plan: CallPlan, layers: Sequence[int], attention: Tensor) -> None:
        """Wanted rows (l, heads, passes, r, keys) of later passes; layers come in order, possibly in parts."""
        means = _mean(attention, 3, plan.groups["action"]).mean(1).transpose(0, 1)
        rows = means.new_zeros(*means.shape[:-1], self._visual)
        plan.columns.copy(means, rows)
        if layers[0] == 0:
            self._later.append(rows)
        else:
            self._later[-1] = torch.cat([self._later[-1], rows], 1)

    def rows(self) -> Tensor | None:
        """(l, h, groups, N_visual) float32; None where no group is wanted. PolicyError if one was never fed."""
        for group, seen in self._seen.items():
            self._check(group, set(self.layers) <= seen)
        return self._rows

    def last_row(self) -> Tensor | None:
        """(layers, N_visual) float32 head mean of the last text row; None where it is not wanted."""
        if not self._spec.last_row or not self._text:
            return None
        self._check("text", len(self._seen_last) == self._count)
        return self._last

    def later(self) -> Tensor | None:
        """(later passes, layers, N_visual) float32 head means of the action rows; None without any."""
        if any(rows.shape[1] != self._count for rows in self._later):
            raise PolicyError(f"a later pass was seen in some layers only; {NOT_SEEN}")
        return torch.cat(self._later) if self._later else None

    @staticmethod
    def _check(group: str, found: bool) -> None:
        if not found:
            raise PolicyError(
                f"rows of query group {group!r} were not seen in every layer; either the layout does not fit the "
                f"policy, or a part of it cannot be observed: {NOT_SEEN}"
            )


def _mean(rows: Tensor, axis: int, which: slice) -> Tensor:
    """Mean over the rows `which` of `axis`; of a single one, a view."""
    if which.stop - which.start == 1:
        return rows.select(axis, which.start)
    return rows.narrow(axis, which.start, which.stop - which.start).mean(axis)


def _at(indices: Sequence[int]) -> slice:
    """Ascending, consecutive `indices` as a slice."""
    return slice(indices[0], indices[-1] + 1)
