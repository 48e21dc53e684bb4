"""Where, among the rows and keys of one forward call, the wanted rows and the visual columns stand.

Calls repeat: every denoise pass of an episode feeds the same positions. So a plan is made once per set of positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tracekit.capture.spec import GROUPS
from tracekit.layout import TokenLayout

__all__ = ["CallPlan", "plan_of"]

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class CallPlan:
    """One forward call. Rows are indices into the fed rows, columns into all keys (held ones first).

    `wanted`: (r,) rows of all query groups that are fed; `groups`: group -> its place among them; `last_text`: place of
    the last text row among them, None if it is not fed. Always all groups, whichever are asked for: the rounding of a
    product over few rows depends on their number. `columns`, `targets`: (m,) visual columns that are there, and their
    indices on the visual axis; `own_visual`, `own_targets`: the same for the fed rows alone. `prefix_rows`: fed rows
    that belong to the prefix. `placed`, `places`: fed rows within the layout, and their positions in it; `key_places`:
    positions of the first keys within it. `bias`: (1, r, keys) float32 of plain causality for the wanted rows.
    """

    fed: int
    held: int
    keys: int
    wanted: Tensor
    groups: Mapping[str, slice]
    last_text: int | None
    columns: Tensor
    targets: Tensor
    own_visual: Tensor
    own_targets: Tensor
    prefix_rows: Tensor
    placed: Tensor
    places: Tensor
    key_places: Tensor
    bias: Tensor


def plan_of(layout: TokenLayout, positions: Tensor, held: Tensor | None, device: torch.device) -> CallPlan:
    """The plan of a call that feeds `positions` (n,) int64, ascending, after the rows at positions `held`."""
    before = b"" if held is None else _bytes(held)
    return _plan(layout, _bytes(positions), before, device)


def _bytes(positions: Tensor) -> bytes:
    numbers: bytes = positions.detach().cpu().to(torch.int64).numpy().tobytes()
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
    columns, targets = _among(keys, layout.visual_positions)
    own, own_targets = _among(fed, layout.visual_positions)
    inside, keys_inside = np.flatnonzero(fed < layout.length), keys[keys < layout.length]
    visible = np.arange(len(keys)) <= len(before) + rows[:, None]

    def put(numbers: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(numbers)).to(device)

    return CallPlan(
        fed=len(fed),
        held=len(before),
        keys=len(keys),
        wanted=put(rows),
        groups=groups,
        last_text=int(last[0]) if last.size else None,
        columns=put(columns),
        targets=put(targets),
        own_visual=put(own),
        own_targets=put(own_targets),
        prefix_rows=put(np.flatnonzero(fed < layout.prefix_length)),
        placed=put(inside),
        places=put(fed[inside]),
        key_places=put(keys_inside),
        bias=put(np.where(visible, np.float32(0), np.float32(-np.inf))[None]),
    )


def _among(positions: Indices, wanted: Indices) -> tuple[Indices, Indices]:
    """Where in `positions` those of `wanted` stand that are there, and which of `wanted` they are."""
    place = np.full(max(int(positions.max(initial=0)), int(wanted.max(initial=0))) + 1, -1, np.int64)
    place[positions] = np.arange(len(positions))
    found = place[wanted]
    there = np.flatnonzero(found >= 0)
    return found[there], there
