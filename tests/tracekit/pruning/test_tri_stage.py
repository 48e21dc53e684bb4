"""The compiled Algorithm 1 against the patch-by-patch oracle, on every option."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import tri_stage as oracle
from tests.tracekit.pruning.drawn import FLOATS, configs, episodes, to_scores, without_points
from tests.tracekit.pruning.oracle_tests import oracle_tests
from tracekit.philox import Modality, Purpose, uniforms
from tracekit.pruning import DecisionKey, Scores, Shape, decision_digest
from tracekit.pruning.tri_stage import TriStageConfig, TriStageState, decide, decide_episode, initial_state


def draws_of(config, uid, t, patches):
    key = DecisionKey(config.seed, uid, 1 if config.draw == "sticky" else t)
    return uniforms(key, Purpose.BACKGROUND, Modality.PATCH, np.arange(patches)).tolist()


def as_lists(decision, shape):
    out = {
        "keep_2d": decision.keep_2d.tolist(),
        "s1": decision.s1.tolist(),
        "s2": decision.s2.tolist(),
        "cluster": None if decision.cluster is None else decision.cluster.tolist(),
        "conflict": decision.conflict.tolist(),
        "pruned": decision.pruned,
    }
    if decision.keep_3d_patches is not None:
        out["keep_3d"] = decision.keep_3d_patches.tolist()
    if decision.keep_3d_tokens is not None:
        out["keep_3d_tokens"] = decision.keep_3d_tokens.tolist()
    return out


def compare(config, episode, uid, observed=None, moving=False):
    steps, alignments, n_3d = episode
    if n_3d == 0:
        config = without_points(config)
    patches = len(steps[0]["norm_2d"])
    shape = Shape(patches, n_3d)
    if moving:  # one view, of 256 patches
        patches = 256
        shape = Shape(256, n_3d, 1, (True,))
    memory, state = oracle.start(patches), initial_state(config, shape)
    decisions = []
    for t, step in enumerate(steps, 1):
        flags = None if observed is None else observed[t - 1]
        expected = oracle.decide(
            memory,
            step,
            config,
            t,
            n_3d,
            draws_of(config, uid, t, patches),
            flags,
            [moving and config.moving_view == "off"] * patches,
            alignments[t - 1] if n_3d else None,
        )
        decision, state = decide(
            to_scores(step),
            state,
            config,
            DecisionKey(config.seed, uid, t),
            shape,
            observed=None if flags is None else np.array(flags),
            patch=np.array(alignments[t - 1], np.int32) if n_3d else None,
        )
        decisions.append(decision)
        found = as_lists(decision, shape)
        assert found == {name: expected[name] for name in found}
        for index, name in enumerate(oracle.INDICATORS):
            assert state.smoothed[index].tolist() == [patch[name] for patch in memory.smoothed]
            assert decision.indicators[name].tolist() == state.smoothed[index].tolist()
        if config.budget == "soft":
            assert decision.notes["target_rate"] == expected["notes"]["target_rate"]
            assert decision.notes["reached_rate"] == expected["notes"]["reached_rate"]
            assert decision.notes["background_rate"] == expected["notes"]["background_rate"]
            assert decision.notes["gap_closed"] == expected["notes"]["gap_closed"]
    return config, shape, decisions, state


@settings(max_examples=250, deadline=None)
@given(configs(budget="none"), episodes(), st.integers(0, 2**64 - 1))
def test_equals_the_oracle_on_every_option(config, episode, uid):
    compare(config, episode, uid)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None)
@given(configs(), episodes(max_steps=8, max_patches=12), st.integers(0, 2**64 - 1))
def test_equals_the_oracle_on_thousands_of_inputs(config, episode, uid):
    compare(config, episode, uid)


@oracle_tests(60, 1500, configs(budget="soft"), episodes(max_steps=2, max_patches=6), st.integers(0, 2**64 - 1))
def check_soft(config, episode, uid):
    compare(config, episode, uid)


test_soft_budget_equals_trying_every_setting, test_soft_budget_equals_trying_every_setting_on_thousands = check_soft


@oracle_tests(100, 1500, configs(budget="hard_topk"), episodes(), st.integers(0, 2**64 - 1))
def check_hard(config, episode, uid):
    compare(config, episode, uid)


test_hard_budget_equals_the_sorted_tokens, test_hard_budget_equals_the_sorted_tokens_on_thousands = check_hard


@settings(max_examples=150, deadline=None)
@given(configs(budget="none"), episodes(), st.data())
def test_unobserved_patches_hold_as_in_the_oracle(config, episode, data):
    steps, patches = len(episode[0]), len(episode[0][0]["norm_2d"])
    flags = [[True] * patches]
    flags += data.draw(
        st.lists(st.lists(st.booleans(), min_size=patches, max_size=patches), min_size=steps - 1, max_size=steps - 1)
    )
    compare(config, episode, 5, observed=flags)


@settings(max_examples=150, deadline=None)
@given(configs(budget="none"), episodes(), st.data())
def test_an_episode_in_one_call_equals_its_steps(config, episode, data):
    config, shape, decisions, state = compare(config, episode, 11)
    scores = Scores.stack([to_scores(step) for step in episode[0]])
    together, after = decide_episode(scores, config, DecisionKey(config.seed, 11, 1), shape)
    assert decision_digest(together) == decision_digest(decisions)
    for one, other in zip(together, decisions, strict=True):
        for name in one.margins:
            np.testing.assert_array_equal(one.margins[name], other.margins[name])
    for name, array in after.to_arrays().items():
        np.testing.assert_array_equal(array, state.to_arrays()[name])
    cut = data.draw(st.integers(0, len(episode[0])))
    if 0 < cut < len(episode[0]):  # an episode may be continued from a stored state
        first, between = decide_episode(cut_steps(scores, 0, cut), config, DecisionKey(config.seed, 11, 1), shape)
        stored = TriStageState.from_arrays(between.to_arrays())
        key = DecisionKey(config.seed, 11, cut + 1)
        second, _ = decide_episode(cut_steps(scores, cut, None), config, key, shape, state=stored)
        assert decision_digest(first + second) == decision_digest(decisions)


def cut_steps(scores, start, stop):
    return Scores(*(getattr(scores, f.name)[start:stop] for f in dataclasses.fields(scores)))


EDGES = {
    "constant scores": {"norm_2d": 1.0, "norm_3d": 1.0, "attention_2d": 1.0, "attention_3d": 1.0, "ortho_3d": 0.5},
    "zeros": dict.fromkeys(FLOATS, 0.0),
    "no attention": {"norm_2d": 1.0, "norm_3d": 0.25, "attention_2d": 0.0, "attention_3d": 0.0, "ortho_3d": 0.0},
    "largest float32": {name: float(np.finfo(np.float32).max) for name in FLOATS},
    "smallest float32": {name: float(np.float32(1e-45)) for name in FLOATS},
}


@pytest.mark.parametrize("values", EDGES.values(), ids=EDGES.keys())
@pytest.mark.parametrize("points", [0, 1])
@pytest.mark.parametrize("patches", [1, 2, 256])
def test_edges(values, points, patches):
    step = {name: [values[name] if points or "3d" not in name else 0.0] * patches for name in FLOATS}
    step["points"] = [points] * patches
    where = list(range(patches)) if points else [-1] * patches
    for config in (TriStageConfig(), TriStageConfig(beta=0.0, k=1), TriStageConfig(beta=1.0, k=2)):
        compare(config, ([step] * 4, [where] * 4, patches), 3)


def test_a_huge_value_hides_the_small_ones_and_overflows_nothing():
    step = {name: [1e30, 1.0, 2.0, 3.0] for name in FLOATS}
    step["points"] = [1, 1, 1, 1]
    step = {name: [float(np.float32(v)) for v in values] if name in FLOATS else values for name, values in step.items()}
    _, _, decisions, _ = compare(TriStageConfig(), ([step] * 2, [[0, 1, 2, 3]] * 2, 4), 3)
    assert decisions[0].cluster.tolist() == [2, 1, 1, 1]  # below 1e30's unit the other three are equal
