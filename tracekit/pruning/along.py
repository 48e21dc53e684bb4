"""Algorithm 1 along an episode, for one configuration or many, compiled; the stages are those of a single decision."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tracekit.pruning._compile import compiled
from tracekit.pruning.arrays import Held, Memory, Outcome, Rule, Seen, Sets
from tracekit.pruning.budget import hard_budget, soft_budget
from tracekit.pruning.stages import background_draws, cluster, fuse, stage1, stage2
from tracekit.pruning.temporal import smooth

__all__ = ["CLUSTERINGS", "Plan", "conclude", "decide_all", "draw_steps"]

CLUSTERINGS = 3
COMBINED, SEPARATE, SMOOTHED = range(CLUSTERINGS)
"""Places of an episode's clusterings: by scores as they are, ‖α_2D‖₁ + ‖α_3D‖₁ or ‖α_2D‖₁, and by smoothed ones."""

Mask = npt.NDArray[np.bool_]
Patches = npt.NDArray[np.int32]
Plan = npt.NDArray[np.int64]
"""(configurations, 3): a configuration's place in the answer, its smoothing, and its row of the draws."""


@compiled
def draw_steps(
    seed: np.uint64, episode_uid: np.uint64, first: int, sticky: bool, draws: npt.NDArray[np.float64]
) -> None:
    """Background draws of the steps from `first` on into `draws` (steps, N); the `sticky` ones are those of step 1."""
    for t in range(len(draws)):
        background_draws(seed, episode_uid, 1 if sticky else first + t, draws[t])


@compiled
def conclude(rule: Rule, held: Held, draws: npt.NDArray[np.float64], step: int, patch: Patches, out: Outcome) -> None:
    """Fuse the stages, bring the masks to the budget, and make them whole where `step` is not pruned yet."""
    fuse(rule, out)
    if rule.soft_budget:
        soft_budget(rule, held, draws, out)
    if step < rule.prune_from:
        out.keep_2d[:] = True
        out.keep_3d[:] = True
    elif rule.hard_budget:
        hard_budget(rule, held, patch, out)
    elif rule.index:
        out.tokens[:] = out.keep_3d[: out.tokens.size]


@compiled
def decide_all(
    rules: npt.NDArray[np.void],
    plan: Plan,
    memory: Memory,
    seen: Seen,
    observed: Mask,
    moving: Mask,
    draws: npt.NDArray[np.float64],
    first_step: int,
    patch: Patches,
    held: Held,
    sets: Sets,
    out: Outcome,
) -> None:
    """Algorithm 1 along one episode for one or more configurations, each into its place of `out`.

    `rules` and `plan` are in the order of the smoothings, so that each is done once. Patches are clustered once per
    clustering that occurs: `sets` (3, steps, ...) has room for the three; scores as they are do not depend on the
    smoothing as long as every patch is `observed`, which more than one configuration therefore needs. `memory` is what
    the first smoothing starts from and is left at the end of the episode; the others start anew. `draws`: (rows,
    steps, N). An outcome with margins for one configuration and step only has them written over.
    """
    patches = moving.size
    known = np.zeros(3, np.bool_)
    for index in range(len(rules)):
        rule = rules[index]
        place, smoothing, row = plan[index]
        if index > 0 and smoothing != plan[index - 1, 1]:
            memory = Memory(
                np.zeros((5, patches)),
                np.zeros(patches, np.int64),
                np.zeros((2, patches)),
                np.zeros(patches, np.int32),
                np.zeros((rule.k if rule.window_mean else 0, 5, patches)),
            )
        if index == 0 or smoothing != plan[index - 1, 1]:
            _smooth_steps(rule, memory, seen, observed, moving, held)
            known[SMOOTHED] = False
        which = SMOOTHED if rule.smoothed_clusters else SEPARATE if rule.separate else COMBINED
        own = Sets(sets.ranks[which], sets.centroids[which], sets.found[which])
        if rule.s2 and not known[which]:
            _cluster_steps(rule, held, own)
            known[which] = True
        here = Outcome(
            out.s1[place],
            out.s2[place],
            out.cluster[place],
            out.conflict[place],
            out.keep_2d[place],
            out.keep_3d[place],
            out.tokens[place],
            out.margins[min(place, len(out.margins) - 1)],
            out.notes[place],
        )
        _conclude_steps(rule, held, own, draws[row], first_step, patch, here)


@compiled
def _smooth_steps(rule: Rule, memory: Memory, seen: Seen, observed: Mask, moving: Mask, held: Held) -> None:
    for t in range(len(observed)):
        now = Seen(
            seen.norm_2d[t],
            seen.norm_3d[t],
            seen.attention_2d[t],
            seen.attention_3d[t],
            seen.ortho_3d[t],
            seen.points[t],
        )
        smooth(rule, memory, now, observed[t], moving)
        held.smoothed[t], held.attention[t], held.points[t] = memory.smoothed, memory.attention, memory.points


@compiled
def _cluster_steps(rule: Rule, held: Held, sets: Sets) -> None:
    for t in range(len(held.points)):
        now = Held(held.smoothed[t], held.attention[t], held.points[t])
        cluster(rule, now, Sets(sets.ranks[t], sets.centroids[t], sets.found[t]))


@compiled
def _conclude_steps(
    rule: Rule,
    held: Held,
    sets: Sets,
    draws: npt.NDArray[np.float64],
    first_step: int,
    patch: Patches,
    out: Outcome,
) -> None:
    for t in range(len(held.points)):
        now = Held(held.smoothed[t], held.attention[t], held.points[t])
        here = Outcome(
            out.s1[t],
            out.s2[t],
            out.cluster[t],
            out.conflict[t],
            out.keep_2d[t],
            out.keep_3d[t],
            out.tokens[t],
            out.margins[min(t, len(out.margins) - 1)],
            out.notes[t],
        )
        stage1(rule, now, rule.tau_2d, rule.tau_3d, here)
        stage2(rule, now, Sets(sets.ranks[t], sets.centroids[t], sets.found[t]), draws[t], here)
        conclude(rule, now, draws[t], first_step + t, patch[t], here)
