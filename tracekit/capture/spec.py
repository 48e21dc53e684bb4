"""What a recording keeps of a forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["GROUPS", "CaptureSpec"]

Group = Literal["text", "state", "action"]

GROUPS: tuple[Group, ...] = ("text", "state", "action")
"""Query groups, in the order of the `query_group` axis."""


@dataclass(frozen=True, slots=True)
class CaptureSpec:
    """Observables to record. Norms and attention of denoise pass 0 are always kept; the rest is chosen here.

    `later_action_rows`: attention of the action rows of passes 1, 2, …, as head means. `embeddings`: the prefix rows of
    pass 0 (image and text tokens are the same in every pass), of all passes, or none.
    """

    name: str = "default"
    later_action_rows: bool = True
    embeddings: Literal["none", "first_pass", "all_passes"] = "first_pass"

    @classmethod
    def minimal(cls) -> CaptureSpec:
        """What the pruners' scores are made of, and no more."""
        return cls("minimal", later_action_rows=False, embeddings="none")

    @classmethod
    def default(cls) -> CaptureSpec:
        """Enough for every pruner that the package ships."""
        return cls()
