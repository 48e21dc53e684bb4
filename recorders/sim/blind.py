"""How a policy without eyes, the control of every table of success rates, is told from one that has them."""

from __future__ import annotations

from tracekit.policy import PolicyIdentity

__all__ = ["BLIND", "is_blind"]

BLIND = "blind"
"""Name in the configuration of a policy that was trained on state and text alone."""


def is_blind(identity: PolicyIdentity) -> bool:
    """Whether the policy was trained without visual tokens, and so has to be run without them."""
    return identity.name == BLIND
