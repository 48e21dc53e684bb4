"""Inputs that hypothesis draws for the tri-stage pruner: configurations of every option, and short episodes."""

import dataclasses

import numpy as np
from hypothesis import strategies as st

from tracekit.pruning import Scores
from tracekit.pruning.tri_stage import TriStageConfig

FLOATS = ("norm_2d", "norm_3d", "attention_2d", "attention_3d", "ortho_3d")
VALUES = st.one_of(
    st.sampled_from([0.0, 1.0, 0.5, float(np.float32(0.1)), 3.0]),
    st.floats(0, 1, width=32),
    st.floats(2**-40, 2**40, width=32),
)
CHOICES = {
    "stages": st.lists(st.sampled_from(["s1", "s2", "s3"]), unique=True).map(tuple),
    "modalities": st.sampled_from(["both", "2d", "3d"]),
    "seed": st.integers(0, 2**64 - 1),
    "beta": st.sampled_from([0.0, 2**-1074, 0.5, 0.85, 1 - 2**-53, 1.0]),
    "k": st.sampled_from([1, 2, 3, 7]),
    "window": st.sampled_from(["recursive", "window_mean"]),
    "prune_from": st.integers(2, 4),
    "rate": st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.95]),
    "ortho": st.sampled_from(["report", "clamp"]),
    "clustering": st.sampled_from(["combined", "separate"]),
    "cluster_input": st.sampled_from(["raw", "smoothed"]),
    "cluster_order": st.sampled_from(["attention", "inverse"]),
    "baseline": st.sampled_from(["with_points", "all_patches", "per_set"]),
    "object_2d_min": st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    "object_3d_max": st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    "object_rule": st.sampled_from(["thresholds", "quantiles"]),
    "background_rate": st.sampled_from([0.0, 0.4, 0.9, 1.0]),
    "draw": st.sampled_from(["step", "sticky", "stratified"]),
    "robot_empty": st.sampled_from(["drop", "keep_2d"]),
    "unprojected_points": st.sampled_from(["keep", "drop", "random"]),
    "protect": st.sampled_from(["none", "object_2d", "all_2d"]),
    "budget": st.sampled_from(["none", "none", "soft", "hard_topk"]),
}


@st.composite
def configs(draw, **fixed):
    tau_2d, tau_3d = sorted(draw(st.tuples(*[st.sampled_from([0.0, 0.08, 0.2, 0.5, 1.0])] * 2)))
    options = draw(st.fixed_dictionaries({}, optional={**CHOICES, **{k: st.just(v) for k, v in fixed.items()}}))
    return TriStageConfig(**read_alone({"tau_2d": tau_2d, "tau_3d": tau_3d, **options, **fixed}))


def read_alone(options):
    """The options less those that the others leave unread, which are refused."""
    unread = {"rate"} if options.get("budget", "none") == "none" else set()
    unread |= {"background_rate"} if options.get("budget") == "soft" else set()
    read = options.get("budget") != "hard_topk" and options.get("modalities") != "2d"
    unread |= set() if read else {"unprojected_points"}
    unread |= {"object_2d_min", "object_3d_max"} if options.get("object_rule") == "quantiles" else set()
    unread |= {"beta"} if options.get("window") == "window_mean" else set()
    return {name: value for name, value in options.items() if name not in unread}


@st.composite
def episodes(draw, max_steps=4, max_patches=9):
    """Scores of a few steps as lists, the points' patches of every step, and whether there are points at all."""
    patches, steps = draw(st.integers(1, max_patches)), draw(st.integers(1, max_steps))
    n_3d = draw(st.sampled_from([0, 1, 6, 16]))
    out, alignments = [], []
    for _ in range(steps):
        where = draw(st.lists(st.integers(-1, patches - 1), min_size=n_3d, max_size=n_3d))
        step = {name: draw(st.lists(VALUES, min_size=patches, max_size=patches)) for name in FLOATS}
        step["points"] = [where.count(p) for p in range(patches)]
        for name in ("norm_3d", "attention_3d", "ortho_3d"):
            step[name] = [v if n else 0.0 for v, n in zip(step[name], step["points"], strict=True)]
        out.append(step)
        alignments.append(where)
    return out, alignments, n_3d


def to_scores(step):
    arrays = {name: np.array(step[name], np.float32) for name in FLOATS}
    return Scores(**arrays, points=np.array(step["points"], np.int32))


def without_points(config):
    """The configuration less what a policy without points refuses."""
    plain = TriStageConfig()
    names = ("tau_2d", "tau_3d", "ortho", "clustering", "baseline", "object_2d_min", "object_3d_max", "object_rule")
    names += ("unprojected_points", "protect", "average")
    fixed = {name: getattr(plain, name) for name in names}
    return dataclasses.replace(config, **fixed, modalities="both" if config.modalities == "3d" else config.modalities)
