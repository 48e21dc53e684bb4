"""A cell is one configuration on one recorded episode; its address says everything that its result depends on.

Cells know nothing of each other, so that any process, on any machine, can take any of them at any time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from replay.sources import program_digest
from tracekit.digest import digest_json

__all__ = ["ADDRESS_DIGITS", "Level", "Target", "address", "context_digest"]

Level = Literal["decisions", "forward"]
"""`decisions`: from stored scores, the same bits on every machine. `forward`: pruned forward passes and actions."""

ADDRESS_DIGITS = 32


@dataclass(frozen=True, slots=True)
class Target:
    """One recorded episode that configurations are tried on."""

    trace: str
    trace_digest: str
    episode: str
    uid: int
    task: str
    steps: int


def address(level: Level | Literal["timing"], configuration: str, target: Target, context: str) -> str:
    """Name of a cell (hex): level, configuration digest, trace digest, episode uid, and `context`.

    `context`: digest of what else results of this level depend on: the program, and for a forward level the policy and
    the environment.
    """
    parts = (level, configuration, target.trace_digest, f"{target.uid:016x}", context)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:ADDRESS_DIGITS]


def context_digest(about: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over the program and over `about`."""
    return digest_json({"sources": program_digest(), **about})
