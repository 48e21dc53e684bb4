"""Whether a policy without eyes is a control: it learned, from the same scenes, what can be learned without them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recorders.sim.blind import is_blind
from recorders.sim.environment import SCENE_VERSION
from recorders.sim.train.papers import SUMMARY, papers_of, plan_of
from tracekit.policy import PolicyIdentity

__all__ = ["no_control_because"]


def no_control_because(policy: Path, identity: PolicyIdentity, tasks: Sequence[str]) -> str | None:
    """Why the policy in the directory `policy` is no control on `tasks`, with what to do; None where it is one.

    A control that must fail is worth nothing if it never had a chance: an unfinished training, or one on other tasks or
    scenes, is none. Raises PolicyError for damaged papers.
    """
    if not is_blind(identity):
        return "this policy has eyes; give one from `tracekit train --blind`"
    papers = papers_of(policy, identity.weights_digest)
    if papers is None:
        return f"no {SUMMARY} in it or beside it is of its weights, so nothing tells what it learned; put it there"
    plan, scenes = plan_of(papers), papers.get("scene_version")
    if scenes != SCENE_VERSION:
        return f"was trained in scenes of version {scenes}, these are of version {SCENE_VERSION}; train one in these"
    if papers["step"] < plan.steps:
        return f"its training is at step {papers['step']} of {plan.steps}; repeat the `tracekit train` that made it"
    strange = sorted(set(tasks) - set(plan.tasks))
    if strange:
        return (
            f"was not trained on {', '.join(strange)}, so it is no control there; train one with "
            "`tracekit train --blind --tasks …`"
        )
    return None
