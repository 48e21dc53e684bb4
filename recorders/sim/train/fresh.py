"""The policy that a training run starts from where it is given none."""

from __future__ import annotations

from dataclasses import replace

from recorders.sim.blind import BLIND
from recorders.sim.train.plan import TrainingPlan
from tracekit.model import MLA, REFERENCE_WORDS, WordTokenizer, initialise, reference

__all__ = ["fresh_policy"]


def fresh_policy(plan: TrainingPlan) -> MLA:
    """The reference policy with random weights of the plan's seed; the blind one has encoders as small as they go."""
    config = reference()
    if plan.blind:
        config = replace(config, name=BLIND, image_width=8, point_width=6, point_outputs=24, point_neighbours=8)
    return initialise(MLA(config, WordTokenizer(REFERENCE_WORDS), trained=True), plan.seed)
