"""A comparison of two replays in words."""

from __future__ import annotations

from collections.abc import Iterator

from reports.diff import ConfigurationDiff, ReplayDiff
from reports.flips import FLIP_CLASSES

__all__ = ["describe", "remarks"]


def describe(detail: ConfigurationDiff) -> Iterator[str]:
    """Lines about one configuration: flips by class, and the first of every class."""
    if not detail.flips:
        return
    counts = ", ".join(f"{detail.counts[kind]} {kind}" for kind in FLIP_CLASSES)
    yield f"{detail.name}: masks of {len(detail.flips)} patches differ: {counts}"
    for kind in FLIP_CLASSES:
        flip = next((flip for flip in detail.flips if flip.kind == kind), None)
        if flip is None or kind == "consequence":
            continue
        where = f"episode {flip.episode}, step {flip.step + 1}, patch {flip.patch}"
        why = "no threshold explains it"
        if flip.margin is not None and flip.value is not None and flip.bound is not None:
            why = f"{flip.margin}, margin {flip.value:.3g}, held against {flip.bound:.3g}"
        yield f"  first {kind}: {where} ({why})"


def remarks(found: ReplayDiff) -> Iterator[str]:
    """What else differs between the two replays, and what that means."""
    changed = [detail.name for detail in found.details if not detail.same_configuration]
    if changed:
        yield f"The configurations themselves differ: {', '.join(changed)}."
    if "fingerprint" in found.other:
        yield "Another environment (fingerprint): equality bit by bit was not to be expected of actions."
    if "versions" in found.other:
        yield "Another version of the program."
