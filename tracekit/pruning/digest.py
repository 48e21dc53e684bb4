"""One digest for a sequence of decisions: equal digests mean equal masks for equal reasons."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from tracekit.pruning.base import Decision

__all__ = ["DIGESTED", "decision_bytes", "decision_digest"]

DIGESTED = ("keep_2d", "keep_3d_patches", "keep_3d_tokens", "s1", "s2", "cluster", "conflict")
"""Fields of a decision that its digest covers, in order."""


def decision_digest(decisions: Iterable[Decision]) -> str:
    """SHA-256 (hex) over masks and reasons of `decisions` in order; margins are float distances and not part of it."""
    digest = hashlib.sha256()
    for decision in decisions:
        digest.update(decision_bytes(decision))
    return digest.hexdigest()


def decision_bytes(decision: Decision) -> bytes:
    """What is digested of a decision.

    "decision", pruned (0 or 1), the rule for unprojected points, and per array its name, its length, and one byte per
    entry; an absent array is its name alone. Every item ends in a zero byte.
    """
    parts = [f"decision\0{int(decision.pruned)}\0{decision.unprojected}\0".encode()]
    for name in DIGESTED:
        array = getattr(decision, name)
        if array is None:
            parts.append(f"{name}\0".encode())
        else:
            parts.append(f"{name}\0{array.size}\0".encode() + array.astype(np.uint8).tobytes() + b"\0")
    return b"".join(parts)
