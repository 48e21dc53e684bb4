"""The vocabulary of pruning: what a pruner is given, what it answers, and how its answer becomes kept tokens.

A pruner is a pure function `decide(scores, state, config, key) -> (decision, state)`. It holds nothing: the state is
the whole memory between the steps of an episode, the key is the only source of randomness.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = [
    "Bits",
    "Decision",
    "DecisionKey",
    "Observes",
    "Pruner",
    "Reads",
    "Shape",
    "StageTimer",
    "Unprojected",
    "untimed",
]

Bits = npt.NDArray[np.uint8]
"""Candidate sets as bits per patch: 0 nothing, 1 = {2D}, 2 = {3D}, 3 = {2D, 3D}."""

Observes = Literal["none", "embeddings", "in_network", "forward"]
Reads = Literal["nothing", "scores", "observables"]
StageTimer = Callable[[Any], AbstractContextManager[None]]
"""Opens a stage of the decision (`stage3`, `stage1`, `stage2`, `fuse`), so that its cost can be attributed."""


def untimed(_stage: str) -> AbstractContextManager[None]:
    """The `StageTimer` that measures nothing."""
    return nullcontext()


Unprojected = Literal["keep", "drop", "random"]


@dataclass(frozen=True, slots=True)
class DecisionKey:
    """What random draws are keyed by, and nothing else: configuration seed, episode uid, 1-based control step."""

    seed: int
    episode_uid: int
    step: int


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes a decision is made for: image tokens (256 per view), point tokens (0 without points), views.

    `moving`: one flag per view, True where the camera moves with the arm (row 22 of the method's options).
    """

    n_2d: int
    n_3d: int
    views: int = 1
    moving: tuple[bool, ...] = (False,)


@dataclass(frozen=True, slots=True)
class Decision:
    """Masks of one control step, and why.

    `keep_2d`: (N_2D,) bool per image token. Exactly one of `keep_3d_patches` ((N_2D,) bool, Mask_3D per patch: a point
    token follows its patch in every denoise pass) and `keep_3d_tokens` ((N_3D,) bool by token index) is given; both are
    None for a policy without points. `unprojected` says what happens to points without a patch.
    `pruned`: False where the rule says that nothing is pruned at this step (cold start).
    Why, for patch-wise rules (else None): `s1`, `s2` candidate sets (`Bits`), `cluster` (N_2D,) int8 with 0 background,
    1 robot, 2 object, `conflict` (N_2D,) bool, and `margins`: name -> (N_2D,) float64 signed distance to each threshold
    that was tested (NaN where it was not); `indicators`: name -> (N_2D,) float64 smoothed values. `notes`: numbers
    about the whole step, such as the pruning rate that a budget aimed at and the one that it reached.
    """

    keep_2d: npt.NDArray[np.bool_]
    keep_3d_patches: npt.NDArray[np.bool_] | None
    keep_3d_tokens: npt.NDArray[np.bool_] | None = None
    unprojected: Unprojected = "keep"
    pruned: bool = True
    s1: Bits | None = None
    s2: Bits | None = None
    cluster: npt.NDArray[np.int8] | None = None
    conflict: npt.NDArray[np.bool_] | None = None
    margins: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    indicators: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    notes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pruner:
    """One pruning method: its configuration class, what it needs, and its pure functions.

    `reads`: what the first argument of `decide` is: None, a `Scores`, or an `Observables`. `requires(config)`: names of
    the fields of it that are read. `observes`: which forward pass it must see; only `forward` chooses between `current`
    and `lagged`. `needs_points` and `needs_pinned_fps` are refused by name where the policy or the configuration cannot
    give them. `initial_state(config, shape)` starts an episode and refuses a configuration that does not fit the shape.

    `decide(seen, state, config, key, shape, *, observed, patch, stage) -> (Decision, state)` is pure. `seen` is None at
    step 1 of a lagged run of a pruner that observes `forward`: nothing has been seen then. A forward run gives every
    keyword, other callers may leave them out: `observed` (N_2D,) bool, the patches whose tokens were all kept when
    `seen` was taken (None: all); `patch` (N_3D,) int32, point token -> patch at the step that is decided (None where
    that is not known); `stage`, a `StageTimer`.

    A state is recorded where it has `to_arrays()`; if the leading axis of those arrays grows, `longest_state(config)`
    says how far.

    A pruner that observes `in_network` prunes behind block `behind(config)` (0-based) of every pass. It also has
    `decide_at(layer, seen, state, config, key, shape) -> Decision | None`: called in pass 0 after block `layer` with
    what is known so far (arrays over layers reach to `layer`), it answers after the block it prunes behind and None
    after the others. `remember(seen, state, config, shape) -> state` then takes in the whole step. `decide`, given a
    step that is recorded to its end, does both.
    """

    kind: str
    config: type
    observes: Observes
    reads: Reads
    requires: Callable[[Any], frozenset[str]]
    initial_state: Callable[[Any, Shape], Any]
    decide: Callable[..., tuple[Decision, Any]]
    needs_points: bool = False
    needs_pinned_fps: Callable[[Any], bool] = lambda _config: False
    behind: Callable[[Any], int] | None = None
    longest_state: Callable[[Any], int] | None = None
    decide_at: Callable[..., Decision | None] | None = None
    remember: Callable[..., Any] | None = None
