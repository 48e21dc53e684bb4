"""Every option of the tri-stage pruner. The numbers are the rows of the table in docs/algorithm1.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from tracekit.errors import ConfigError
from tracekit.pruning.base import Shape, Unprojected
from tracekit.pruning.fixed_point import MAX_TERMS
from tracekit.pruning.options import check_choices, check_range, check_unread
from tracekit.pruning.scores import Reduction

__all__ = ["TriStageConfig", "check_shape", "counts_tokens", "is_pruned"]

Stage = Literal["s1", "s2", "s3"]


@dataclass(frozen=True, slots=True)
class TriStageConfig:
    """Algorithm 1 and its readings; the defaults are the preset `default`.

    `stages`: the stages in force. Without s1 every S1 is {2D, 3D}, without s2 every S2 is, without s3 X̂ is X and
    pruning starts at step 1. `modalities`: `2d` (`3d`) computes both masks and then keeps every 3D (2D) token. `seed`:
    of the background draws. `tau_2d` ≤ `tau_3d`: below the first a patch is 2D only, above the second 3D only (stage
    1). `beta`, `k`: weight of the past and length of the warm-up of stage 3.

    `average` (3), read by reports: Eq. 1, 5, 6 as mean of the patches' ratios or as ratio of sums. `ortho` (6):
    ‖ortho‖₁ as it is, or at most ‖α_3D‖₁. `clustering` (7): by ‖α_2D‖₁ + ‖α_3D‖₁, or `separate`, by ‖α_2D‖₁ alone;
    `cluster_order`: which end of the scores is the object. `cluster_input` (19): scores of this step or smoothed ones.
    `baseline` (8): μ over the patches that have points, over all, or over those with points of the patch's own set.
    `object_rule` (9): the two object thresholds as given, or the 0.9 and 0.1 quantiles over the object set.
    `background_rate`, `draw` (10): probability of ∅ in the background; one draw per step, `sticky`: the draw of step 1
    for the whole episode, `stratified`: exactly round(rate·n) patches dropped, those with the lowest draws.
    `robot_empty` (11): what becomes of a robot patch below both means. `protect` (12): add 2D to C on object patches,
    or on all, where S2 ≠ ∅. `unprojected_points` (2): points without a patch are kept, dropped, or kept with the share
    of the others. `budget`, `rate` (13): `soft` moves the background rate and then τ towards the total pruning rate
    `rate`, `hard_topk` keeps exactly round(N·(1 - rate)) tokens per modality. `window` (20): Eq. 8 and 9, or the mean
    of the last k values. `prune_from` (21): first step that is pruned where stage 3 is in force. `moving_view` (22):
    whether patches of a view whose camera moves are smoothed.

    What a stage would read may be set while the stage is not in force, so that it can be switched on and off alone.

    Raises ConfigError for values out of range, and for ones that the other options leave unread.
    """

    stages: tuple[Stage, ...] = ("s1", "s2", "s3")
    modalities: Literal["both", "2d", "3d"] = "both"
    seed: int = 0
    tau_2d: float = 0.08
    tau_3d: float = 0.20
    beta: float = 0.85
    k: int = 7
    window: Literal["recursive", "window_mean"] = "recursive"
    prune_from: int = 2
    budget: Literal["none", "soft", "hard_topk"] = "none"
    rate: float = 0.7
    average: Literal["mean_of_ratios", "ratio_of_sums"] = "mean_of_ratios"
    ortho: Literal["report", "clamp"] = "report"
    clustering: Literal["combined", "separate"] = "combined"
    cluster_input: Literal["raw", "smoothed"] = "raw"
    cluster_order: Literal["attention", "inverse"] = "attention"
    baseline: Literal["with_points", "all_patches", "per_set"] = "with_points"
    object_2d_min: float = 0.9
    object_3d_max: float = 0.02
    object_rule: Literal["thresholds", "quantiles"] = "thresholds"
    background_rate: float = 0.9
    draw: Literal["step", "sticky", "stratified"] = "step"
    robot_empty: Literal["drop", "keep_2d"] = "drop"
    unprojected_points: Unprojected = "keep"
    moving_view: Literal["off", "on"] = "off"
    protect: Literal["none", "object_2d", "all_2d"] = "none"
    reduction: Reduction = field(default_factory=Reduction)

    def __post_init__(self) -> None:
        check_choices(self)
        if len(set(self.stages)) < len(self.stages) or not set(self.stages) <= set(get_args(Stage)):
            raise ConfigError(f"pruner.stages = {list(self.stages)}: any of s1, s2, s3, each at most once")
        check_range(self, "seed", 0, 2**64 - 1, "the key of the random draws")
        check_range(self, "tau_2d", 0, 1, "a share of the feature norm (M_3D of stage 1)")
        check_range(self, "tau_3d", 0, 1, "a share of the feature norm (M_3D of stage 1)")
        if self.tau_2d > self.tau_3d:
            raise ConfigError(
                f"pruner.tau_2d = {self.tau_2d} > pruner.tau_3d = {self.tau_3d}: the 2D-only region must lie below the "
                "3D-only region; lower tau_2d or raise tau_3d"
            )
        check_range(self, "beta", 0, 1, "the weight of the past in Eq. 9")
        check_range(self, "k", 1, 10_000, "a number of control steps")
        check_range(self, "prune_from", 2, 10_000, "a control step counted from 1, and step 1 is never pruned")
        check_range(self, "rate", 0, 1, "the share of tokens to prune", open_end=True)
        check_range(self, "object_2d_min", 0, 1, "a share of the attention (M_2D of stage 2)")
        check_range(self, "object_3d_max", 0, 1, "a share of the attention (M_3D of stage 2)")
        check_range(self, "background_rate", 0, 1, "a probability")
        if self.budget == "none":
            check_unread(self, ("rate",), "budget = 'soft' or 'hard_topk'")
        if self.budget == "soft":
            check_unread(self, ("background_rate",), "budget = 'none' or 'hard_topk' ('soft' searches it)")
        if counts_tokens(self):
            check_unread(
                self, ("unprojected_points",), "budgets other than 'hard_topk' and correspondence = 'projection'"
            )
        if self.modalities == "2d":
            check_unread(self, ("unprojected_points",), "modalities = 'both' or '3d'")
        if self.reduction.correspondence == "nearest":
            check_unread(self, ("unprojected_points",), "correspondence = 'projection'")
        if self.object_rule == "quantiles":
            check_unread(self, ("object_2d_min", "object_3d_max"), "object_rule = 'thresholds'")
        if self.window == "window_mean":
            check_unread(self, ("beta",), "window = 'recursive'")


def counts_tokens(config: TriStageConfig) -> bool:
    """Whether Mask_3D is over point tokens by their index, which takes pinned FPS; elsewhere points follow patches."""
    return config.reduction.correspondence == "index" or config.budget == "hard_topk"


def is_pruned(config: TriStageConfig, step: int) -> bool:
    """Whether the rule prunes at control step `step` (1-based); before `prune_from` stage 3 starts cold."""
    return step >= (config.prune_from if "s3" in config.stages else 1)


_NEEDS_POINTS = (
    "tau_2d",
    "tau_3d",
    "average",
    "ortho",
    "clustering",
    "baseline",
    "object_2d_min",
    "object_3d_max",
    "object_rule",
    "unprojected_points",
    "protect",
)


def check_shape(config: TriStageConfig, shape: Shape) -> None:
    """Refuse a configuration that has no meaning for a policy of `shape`; raises ConfigError naming the option."""
    if shape.n_2d > MAX_TERMS:
        raise ConfigError(
            f"pruner 'tri_stage': {shape.n_2d} image tokens; at most {MAX_TERMS} (16 views) can be clustered"
        )
    if shape.n_3d:
        if config.reduction.correspondence == "index" and shape.n_3d > shape.n_2d:
            raise ConfigError(
                f"pruner.reduction.correspondence = 'index': {shape.n_3d} point tokens cannot be matched with "
                f"{shape.n_2d} image tokens one by one; use 'projection'"
            )
        return
    plain = TriStageConfig()
    changed = [name for name in _NEEDS_POINTS if getattr(config, name) != getattr(plain, name)]
    if changed or config.modalities == "3d":
        name = changed[0] if changed else "modalities"
        raise ConfigError(
            f"pruner.{name} = {getattr(config, name)!r}: has no meaning for a policy without point tokens; remove it"
        )
