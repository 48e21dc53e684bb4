"""The token layout of a foreign policy, read off the rows that its backbone is fed: parts are found by content."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recorders.attach_passes import PassSeen, locate
from tracekit.errors import PolicyError
from tracekit.layout import PATCHES_PER_VIEW, TokenLayout

__all__ = ["layout_of", "visual_layout"]


def visual_layout(seen: PassSeen, views: Sequence[str]) -> TokenLayout:
    """Only the visual spans, points first: the sizes that a pruner decides for, known before the rows are laid out.

    Raises PolicyError where the number of image parts is not that of `views`, or a view has not 256 tokens.
    """
    images = seen.blocks.get("image", [])
    if len(images) != len(views):
        raise PolicyError(
            f"the policy embeds {len(images)} images per pass, but the views are {list(views)}; name them in sequence "
            "order, front first, as views="
        )
    for view, rows in zip(views, images, strict=True):
        if len(rows) != PATCHES_PER_VIEW:
            raise PolicyError(
                f"view {view!r} has {len(rows)} image tokens; {PATCHES_PER_VIEW} per view are supported (16 x 16)"
            )
    points = [("point", len(rows)) for rows in seen.blocks.get("point", [])]
    return TokenLayout.of_lengths(*points, *((f"image.{view}", PATCHES_PER_VIEW) for view in views))


def layout_of(seen: PassSeen, views: Sequence[str]) -> TokenLayout:
    """The layout of a pass, unpruned or restored (`seen.whole`).

    Rows that no part accounts for are called `tactile` if zero, else `other.<i>`. Raises PolicyError naming the first
    part whose rows the backbone was not fed.
    """
    if seen.rows is None:
        raise PolicyError("the backbone was fed no rows; correct its site")
    rows, sizes = seen.rows if seen.whole is None else seen.whole, visual_layout(seen, views)
    taken = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    starts: dict[int, tuple[str, int]] = {}

    def place(name: str, block: Tensor) -> int:
        start = locate(rows, block, taken)
        if start is None:
            raise PolicyError(
                f"the {len(block)} rows of {name!r} are not among the {len(taken)} that the backbone was fed; the "
                "sites do not fit this policy, or its rows are changed on the way"
            )
        taken[start : start + len(block)] = True
        starts[start] = (name, len(block))
        return start + len(block)

    for name in ("point", "proprio", "timestep"):
        for block in seen.blocks.get(name, []):
            place(name, block)
    for view, block in zip(sizes.views, seen.blocks["image"], strict=True):
        place(f"image.{view}", block)
    end = place("action", seen.blocks["action"][0])
    text = seen.blocks["text"][0]
    tail = len(rows) - end
    place("bos", text[:1])
    if tail:
        place("tail", text[-tail:])
    if len(text) > 1 + tail:
        place("text", text[1 : len(text) - tail])
    return _tiled(starts, rows)


def _tiled(starts: dict[int, tuple[str, int]], rows: Tensor) -> TokenLayout:
    spans: list[tuple[str, int]] = []
    position = 0
    for start, (name, length) in [*sorted(starts.items()), (len(rows), ("", 0))]:
        if start > position:
            zero = not bool(rows[position:start].any())
            known = {given for given, _ in spans}
            spans.append(("tactile" if zero and "tactile" not in known else f"other.{position}", start - position))
        if name:
            spans.append((name, length))
        position = start + length
    return TokenLayout.of_lengths(*spans)
