"""Many configurations at once against `decide` step by step."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tracekit.pruning.drawn import configs, episodes, to_scores, without_points
from tracekit.errors import ConfigError, TraceError
from tracekit.pruning import DecisionKey, Scores, Shape, decision_digest
from tracekit.pruning.grid import decide_grid
from tracekit.pruning.tri_stage import TriStageConfig, decide, initial_state
from tracekit.testing import random_scores

SHAPE = Shape(256, 256)
SCORES = random_scores(SHAPE, 6, 3)


def one_by_one(scores, config, uid, shape, first_step=1, patch=None):
    state, decisions = initial_state(config, shape), []
    for index in range(len(scores)):
        key = DecisionKey(config.seed, uid, first_step + index)
        here = None if patch is None else patch[index]
        decision, state = decide(scores.step(index), state, config, key, shape, patch=here)
        decisions.append(decision)
    return decisions


def same(grid, place, decisions):
    found = [grid.decision(place, index) for index in range(len(decisions))]
    assert decision_digest(found) == decision_digest(decisions)
    assert [decision.notes for decision in found] == [decision.notes for decision in decisions]
    for index, decision in enumerate(decisions):  # the arrays that a sweep reads are the decision's masks
        assert grid.pruned[place, index] == decision.pruned
        np.testing.assert_array_equal(grid.keep_2d[place, index], decision.keep_2d)
        if decision.keep_3d_patches is not None:
            np.testing.assert_array_equal(grid.keep_3d[place, index], decision.keep_3d_patches)
        if decision.keep_3d_tokens is not None:
            assert grid.of_tokens[place]
            np.testing.assert_array_equal(grid.keep_3d_tokens[place, index], decision.keep_3d_tokens)


@settings(max_examples=150, deadline=None)
@given(st.lists(configs(), min_size=1, max_size=6), episodes(), st.integers(0, 2**64 - 1), st.sampled_from([1, 2]))
def test_equals_a_loop_over_decide(chosen, episode, uid, first_step):
    steps, alignments, n_3d = episode
    chosen = chosen if n_3d else [without_points(config) for config in chosen]
    shape, scores = Shape(len(steps[0]["norm_2d"]), n_3d), Scores.stack([to_scores(step) for step in steps])
    patch = np.array(alignments, np.int32) if n_3d else None
    grid = decide_grid(scores, chosen, uid, shape, first_step=first_step, patch=patch)
    for place, config in enumerate(chosen):
        same(grid, place, one_by_one(scores, config, uid, shape, first_step, patch))


def test_what_is_shared_does_not_leak_between_configurations():
    """Every pair of values of every option that smoothing, clustering or drawing depends on, interleaved."""
    options = [
        {},
        {"tau_2d": 0.1},
        {"beta": 0.3},
        {"k": 2},
        {"window": "window_mean", "k": 3},
        {"window": "window_mean", "k": 2},
        {"ortho": "clamp"},
        {"clustering": "separate"},
        {"cluster_input": "smoothed"},
        {"cluster_input": "smoothed", "beta": 0.3},
        {"cluster_input": "smoothed", "clustering": "separate"},
        {"cluster_order": "inverse"},
        {"seed": 5},
        {"draw": "sticky"},
        {"draw": "stratified"},
        {"stages": ("s1", "s3")},
        {"stages": ("s1", "s2")},
    ]
    chosen = [TriStageConfig(**one) for one in options] * 2
    grid = decide_grid(SCORES, chosen, 7, SHAPE)
    for place, config in enumerate(chosen):
        same(grid, place, one_by_one(SCORES, config, 7, SHAPE))


@pytest.mark.parametrize("moving_view", ["off", "on"])
def test_a_moving_view_is_smoothed_only_where_that_is_asked_for(moving_view):
    shape = Shape(512, 256, 2, (False, True))
    scores = random_scores(shape, 4, 5)
    chosen = [TriStageConfig(moving_view=moving_view), TriStageConfig(), TriStageConfig(moving_view="on")]
    grid = decide_grid(scores, chosen, 7, shape)
    for place, config in enumerate(chosen):
        same(grid, place, one_by_one(scores, config, 7, shape))
    assert (grid.keep_2d[1] != grid.keep_2d[2]).any()


def test_the_grid_does_not_depend_on_its_other_configurations():
    chosen = [TriStageConfig(tau_2d=0.01 * i, beta=0.1 * (i % 3)) for i in range(9)]
    together = decide_grid(SCORES, chosen, 7, SHAPE)
    for place, config in enumerate(chosen):
        alone = decide_grid(SCORES, [config], 7, SHAPE)
        np.testing.assert_array_equal(alone.keep_2d[0], together.keep_2d[place])
        np.testing.assert_array_equal(alone.cluster[0], together.cluster[place])


def test_refusals_name_what_is_wrong():
    with pytest.raises(ConfigError, match="at least one"):
        decide_grid(SCORES, [], 7, SHAPE)
    with pytest.raises(TraceError, match=r"Scores\.stack"):
        decide_grid(SCORES.step(0), [TriStageConfig()], 7, SHAPE)
    with pytest.raises(ConfigError, match="needs their patches"):
        decide_grid(SCORES, [TriStageConfig(), TriStageConfig(budget="hard_topk")], 7, SHAPE)
    with pytest.raises(ConfigError, match="tau_2d"):
        decide_grid(random_scores(Shape(256, 0), 2), [TriStageConfig(tau_2d=0.1)], 7, Shape(256, 0))
    with pytest.raises(TraceError, match="another policy"):
        decide_grid(SCORES, [TriStageConfig()], 7, Shape(512, 256, 2, (False, False)))
    patch = np.full((6, 256), 256, np.int32)
    with pytest.raises(TraceError, match="a point lies in patch 256"):
        decide_grid(SCORES, [TriStageConfig(budget="hard_topk")], 7, SHAPE, patch=patch)
