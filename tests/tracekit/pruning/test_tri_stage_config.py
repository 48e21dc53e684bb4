"""What the tri-stage pruner refuses, in one line that names the option."""

import dataclasses

import numpy as np
import pytest

from tracekit.errors import ConfigError, TraceError
from tracekit.pruning import DecisionKey, Reduction, Scores, Shape, pruner
from tracekit.pruning.tri_stage import TriStageConfig, decide, decide_episode, initial_state

KEY = DecisionKey(0, 1, 1)


def constant_scores(*shape):
    ones = np.ones(shape, np.float32)
    return Scores(ones, ones, ones, ones, ones, ones.astype(np.int32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau_2d": 1.5}, r"pruner.tau_2d = 1.5: must lie in \[0, 1\]"),
        ({"tau_2d": float("nan")}, "pruner.tau_2d = nan"),
        ({"tau_2d": 0.3}, "pruner.tau_2d = 0.3 > pruner.tau_3d = 0.2: .* lower tau_2d or raise tau_3d"),
        ({"beta": -0.1}, "pruner.beta = -0.1"),
        ({"k": 0}, "pruner.k = 0"),
        ({"prune_from": 1}, "step 1 is never pruned"),
        ({"rate": 1.0}, r"pruner.rate = 1.0: must lie in \[0, 1\)"),
        ({"seed": 2**64}, "pruner.seed"),
        ({"background_rate": 2.0}, "pruner.background_rate"),
        ({"object_2d_min": 2.0}, "pruner.object_2d_min"),
        ({"object_3d_max": -1.0}, "pruner.object_3d_max"),
        ({"stages": ("s1", "s4")}, "pruner.stages"),
        ({"stages": ("s1", "s1")}, "pruner.stages"),
        ({"draw": "often"}, "pruner.draw = 'often': choose one of step, sticky, stratified"),
        ({"budget": "topk"}, "none, soft, hard_topk"),
    ],
)
def test_values_out_of_range(options, message):
    with pytest.raises(ConfigError, match=message):
        TriStageConfig(**options)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"rate": 0.5}, "rate"),
        ({"budget": "soft", "background_rate": 0.5}, "background_rate"),
        ({"budget": "hard_topk", "unprojected_points": "drop"}, "unprojected_points"),
        ({"modalities": "2d", "unprojected_points": "drop"}, "unprojected_points"),
        ({"reduction": Reduction(correspondence="index"), "unprojected_points": "drop"}, "unprojected_points"),
        ({"reduction": Reduction(correspondence="nearest"), "unprojected_points": "random"}, "unprojected_points"),
        ({"object_rule": "quantiles", "object_2d_min": 0.5}, "object_2d_min"),
        ({"object_rule": "quantiles", "object_3d_max": 0.5}, "object_3d_max"),
        ({"window": "window_mean", "beta": 0.5}, "beta"),
    ],
)
def test_what_nothing_reads_is_refused_by_name(options, name):
    with pytest.raises(ConfigError, match=f"pruner.{name} = .*: is read by .* only; remove it"):
        TriStageConfig(**options)


def test_what_a_stage_reads_may_be_set_while_it_is_off():
    TriStageConfig(stages=("s2",), tau_2d=0.1, beta=0.5, k=3, prune_from=4)


@pytest.mark.parametrize(
    "options",
    [
        {"tau_2d": 0.01},
        {"tau_3d": 0.3},
        {"average": "ratio_of_sums"},
        {"ortho": "clamp"},
        {"clustering": "separate"},
        {"baseline": "all_patches"},
        {"object_2d_min": 0.5},
        {"object_3d_max": 0.5},
        {"object_rule": "quantiles"},
        {"unprojected_points": "drop"},
        {"protect": "all_2d"},
        {"modalities": "3d"},
    ],
)
def test_3d_options_without_points(options):
    (name,) = options
    with pytest.raises(ConfigError, match=f"pruner.{name} = .* without point tokens"):
        initial_state(TriStageConfig(**options), Shape(256, 0))
    initial_state(TriStageConfig(**options), Shape(256, 256))


def test_shapes_that_cannot_be_decided():
    with pytest.raises(ConfigError, match="16 views"):
        initial_state(TriStageConfig(), Shape(4097, 256))
    by_index = TriStageConfig(reduction=Reduction(correspondence="index"))
    with pytest.raises(ConfigError, match="cannot be matched"):
        initial_state(by_index, Shape(256, 257))


def test_scores_of_another_policy():
    shape = Shape(4, 4)
    state = initial_state(TriStageConfig(), shape)
    with pytest.raises(TraceError, match=r"scores are of 5 patches .* the policy has 4"):
        decide(constant_scores(5), state, TriStageConfig(), KEY, shape)


def test_an_episode_must_start_with_everything_observed():
    shape = Shape(4, 4)
    partly = np.array([True, True, False, True])
    with pytest.raises(TraceError, match="first step of an episode must observe every patch"):
        decide(
            constant_scores(4), initial_state(TriStageConfig(), shape), TriStageConfig(), KEY, shape, observed=partly
        )
    with pytest.raises(TraceError, match="observed is of shape"):
        decide_episode(constant_scores(2, 4), TriStageConfig(), KEY, shape, observed=partly)


def test_hard_topk_needs_the_points_of_the_step():
    config, shape = TriStageConfig(budget="hard_topk", stages=("s1", "s2")), Shape(4, 4)
    with pytest.raises(ConfigError, match=r"needs their patches .*, tokens/point_patch of a trace"):
        decide(constant_scores(4), initial_state(config, shape), config, KEY, shape)


def test_single_point_options_need_pinned_fps():
    needs = pruner("tri_stage").needs_pinned_fps
    assert not needs(TriStageConfig())
    assert needs(TriStageConfig(budget="hard_topk"))
    assert needs(TriStageConfig(reduction=Reduction(correspondence="index")))


def test_the_reduction_is_read_by_the_scores_and_not_by_the_decision():
    assert pruner("tri_stage").requires(TriStageConfig()) == {f.name for f in dataclasses.fields(Scores)}
    assert "patch" in pruner("tri_stage").requires(TriStageConfig(budget="hard_topk"))
