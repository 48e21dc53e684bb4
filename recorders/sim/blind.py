"""How a policy without eyes, the control of every table of success rates, is told from one that has them."""

from __future__ import annotations

import json
from pathlib import Path

from tracekit.policy import PolicyIdentity

__all__ = ["BLIND", "is_blind", "trained_tasks"]

BLIND = "blind"
"""Name in the configuration of a policy that was trained on state and text alone."""


def is_blind(identity: PolicyIdentity) -> bool:
    """Whether the policy was trained without visual tokens, and so has to be run without them."""
    return identity.name == BLIND


def trained_tasks(policy: Path) -> frozenset[str] | None:
    """Tasks that the policy in this directory was trained on, by the papers in it or beside it; None without papers."""
    for papers in (policy / "training.json", policy.parent / "training.json"):
        try:
            return frozenset(json.loads(papers.read_text("utf-8"))["plan"]["tasks"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None
