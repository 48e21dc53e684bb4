"""Where, among the rows and keys of one forward call, the wanted rows and the visual columns stand.

Calls repeat: every denoise pass of an episode feeds the same positions. So a plan is made once per set of positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tracekit.capture.spec import GROUPS
from tracekit.layout import TokenLayout

__all__ = ["CallPlan", "Places", "plan_of"]

Indices = npt.NDArray[np.int64]

FEW_RUNS = 8


@dataclass(frozen=True, slots=True)
class Places:
    """Indices along an axis, `index` (m,) int64. Where they form a few `runs`, slicing is ten times cheaper."""

    index: Tensor
    runs: tuple[slice, ...]

    def __len__(self) -> int:
        return len(self.index)

    def along(self, axis: int, values: Tensor) -> Tensor:
        """The elements of `values` at these places of `axis`; a view where they are a single run."""
        if not self.runs:
            return values.index_select(axis, self.index)
        parts = [values.narrow(axis, run.start, run.stop - run.start) for run in self.runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


@dataclass(frozen=True, slots=True)
class Moves:
    """Numbers at `sources` (m,) of one axis go to `targets` (m,) of another; in `runs` where those are few."""

    sources: Tensor
    targets: Tensor
    runs: tuple[tuple[slice, slice], ...]

    def __len__(self) -> int:
        return len(self.sources)

    def copy(self, values: Tensor, out: Tensor) -> None:
        """Copy from the last axis of `values` to that of `out`; the other axes agree."""
        if not self.runs:
            out[..., self.targets] = values[..., self.sources]
        for source, target in self.runs:
            out[..., target] = values[..., source]


@dataclass(frozen=True, slots=True)
class CallPlan:
    """One forward call. Rows are places among the fed rows, columns among all keys (held ones first).

    `wanted`: (r,) rows of all query groups that are fed. Always all groups, whichever are asked for: the rounding of a
    product over few rows depends on their number. `groups`: group -> its slice of the wanted rows, where it is fed;
    `last_text`: place of the last text row among them, None if it is not fed. `columns`: (m,) visual columns that are
    there, and their places on the visual axis; `own_visual`: the same for the fed rows alone.
    `prefix_rows`: fed rows that belong to the prefix. `placed`, `places`: fed rows within the layout, and their
    positions in it; `key_places`: positions of the first keys within it. `bias`: (1, r, keys) float32 of plain
    causality for the wanted rows: 0 where a row may look, -inf where not. `feeds_tail`: whether rows behind the prefix
    are fed.
    """

    fed: int
    held: int
    keys: int
    wanted: Places
    groups: Mapping[str, slice]
    last_text: int | None
    columns: Moves
    own_visual: Moves
    prefix_rows: Tensor
    placed: Tensor
    places: Tensor
    key_places: Tensor
    bias: Tensor
    feeds_tail: bool


def plan_of(layout: TokenLayout, positions: Tensor, held: Tensor | None, device: torch.device) -> CallPlan:
    """The plan of a call that feeds `positions` (n,) int64, ascending, after the rows at positions `held`."""
    before = b"" if held is None else _bytes(held)
    return _plan(layout, _bytes(positions), before, device)


def _bytes(positions: Tensor) -> bytes:
    if positions.device.type != "cpu" or positions.dtype != torch.int64:
        positions = positions.to("cpu", torch.int64)
    numbers: bytes = positions.numpy().tobytes()
    return numbers


@lru_cache(maxsize=64)
def _plan(layout: TokenLayout, positions: bytes, held: bytes, device: torch.device) -> CallPlan:
    fed, before = np.frombuffer(positions, np.int64), np.frombuffer(held, np.int64)
    keys = np.concatenate([before, fed])
    members: dict[str, Indices] = {group: layout.group_positions(group) for group in GROUPS}
    rows = np.flatnonzero(np.isin(fed, np.concatenate(list(members.values()))))
    groups = {}
    for group, own in members.items():
        places = np.flatnonzero(np.isin(fed[rows], own))
        if places.size:
            groups[group] = slice(int(places[0]), int(places[-1]) + 1)
    text = members["text"]
    last = np.flatnonzero(fed[rows] == text[-1]) if text.size else np.zeros(0, np.int64)
    visual = layout.visual_positions
    within, keys_within = np.flatnonzero(fed < layout.length), keys[keys < layout.length]
    visible = np.arange(len(keys)) <= len(before) + rows[:, None]

    def put(numbers: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(numbers)).to(device)

    def at(indices: Indices) -> Places:
        return Places(put(indices), tuple(run for (run,) in _runs(indices)))

    def moves(sources: Indices, targets: Indices) -> Moves:
        return Moves(put(sources), put(targets), tuple((one, other) for one, other in _runs(sources, targets)))

    return CallPlan(
        fed=len(fed),
        held=len(before),
        keys=len(keys),
        wanted=at(rows),
        groups=groups,
        last_text=int(last[0]) if last.size else None,
        columns=moves(*_among(keys, visual)),
        own_visual=moves(*_among(fed, visual)),
        prefix_rows=put(np.flatnonzero(fed < layout.prefix_length)),
        placed=put(within),
        places=put(fed[within]),
        key_places=put(keys_within),
        bias=put(np.where(visible, np.float32(0), np.float32(-np.inf))[None]),
        feeds_tail=bool((fed >= layout.prefix_length).any()),
    )


def _among(positions: Indices, wanted: Indices) -> tuple[Indices, Indices]:
    """Where in `positions` those of `wanted` stand that are there, and which of `wanted` they are."""
    place = np.full(max(int(positions.max(initial=0)), int(wanted.max(initial=0))) + 1, -1, np.int64)
    place[positions] = np.arange(len(positions))
    found = place[wanted]
    there = np.flatnonzero(found >= 0)
    return found[there], there


def _runs(*indices: Indices) -> list[tuple[slice, ...]]:
    """Stretches over which all of `indices`, of one length, are contiguous, in order; none where there are many."""
    count = len(indices[0])
    cuts = np.flatnonzero(np.any([np.diff(one) != 1 for one in indices], axis=0)) + 1
    if not count or len(cuts) >= FEW_RUNS:
        return []
    bounds = [0, *cuts.tolist(), count]
    return [
        tuple(slice(int(one[start]), int(one[start]) + stop - start) for one in indices)
        for start, stop in pairwise(bounds)
    ]
