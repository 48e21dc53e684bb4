"""The policy that a training run starts from where it is given none, and the mark of the blind one."""

from __future__ import annotations

from dataclasses import replace

from recorders.sim.train.plan import TrainingPlan
from tracekit.model import MLA, REFERENCE_WORDS, WordTokenizer, initialise, reference

__all__ = ["fresh_policy", "is_blind"]

_BLIND = "blind"


def fresh_policy(plan: TrainingPlan) -> MLA:
    """The reference policy with random weights of the plan's seed; the blind one has encoders as small as they go."""
    config = reference()
    if plan.blind:
        config = replace(config, name=_BLIND, image_width=8, point_width=6, point_outputs=24, point_neighbours=8)
    return initialise(MLA(config, WordTokenizer(REFERENCE_WORDS), trained=True), plan.seed)


def is_blind(policy: MLA) -> bool:
    """Whether `policy` was trained without eyes: its encoders are not, and it must never be given visual tokens."""
    return policy.config.name == _BLIND
