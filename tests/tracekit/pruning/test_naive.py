import numpy as np
import pytest
from hypothesis import strategies as st

from tests.oracles import naive as oracle
from tests.tracekit.pruning.oracle_tests import oracle_tests
from tracekit.errors import ConfigError
from tracekit.philox import Modality, Purpose, uniforms
from tracekit.pruning import DecisionKey, Shape, point_mask, pruner
from tracekit.pruning.naive import NaiveConfig

NAIVE = pruner("naive")


def decide(config, key, shape):
    state = NAIVE.initial_state(config, shape)
    return NAIVE.decide(None, state, config, key, shape)[0]


@oracle_tests(
    100,
    2000,
    st.floats(0, 0.999),
    st.sampled_from([1, 2, 16, 256, 512]),
    st.sampled_from([0, 1, 256]),
    st.integers(0, 2**64 - 1),
    st.integers(1, 50),
)
def check_naive(rate, n_2d, n_3d, uid, step):
    config, key = NaiveConfig(rate=rate, seed=4), DecisionKey(4, uid, step)
    decision = decide(config, key, Shape(n_2d, n_3d))
    expected = oracle.kept(uniforms(key, Purpose.TOKENS, Modality.IMAGE, np.arange(n_2d)).tolist(), rate)
    assert decision.keep_2d.tolist() == expected
    if n_3d:
        expected = oracle.kept(uniforms(key, Purpose.TOKENS, Modality.POINT, np.arange(n_3d)).tolist(), rate)
        assert decision.keep_3d_tokens.tolist() == expected
    else:
        assert decision.keep_3d_tokens is None


test_keeps_the_lowest_uniforms, test_keeps_the_lowest_uniforms_on_thousands_of_inputs = check_naive


@pytest.mark.parametrize(("rate", "kept"), [(0.5, 128), (0.6, 102), (0.7, 77), (0.8, 51)])
def test_published_rates(rate, kept):
    decision = decide(NaiveConfig(rate=rate), DecisionKey(0, 1, 1), Shape(256, 256))
    assert (decision.keep_2d.sum(), decision.keep_3d_tokens.sum()) == (kept, kept)


def test_a_step_draws_anew_and_an_episode_does_not():
    shape = Shape(256, 256)
    for redraw, same in (("step", False), ("episode", True)):
        config = NaiveConfig(redraw=redraw)
        one, two = (decide(config, DecisionKey(0, 1, step), shape) for step in (1, 2))
        assert np.array_equal(one.keep_2d, two.keep_2d) is same
        other = decide(config, DecisionKey(0, 2, 1), shape)
        assert not np.array_equal(one.keep_2d, other.keep_2d)


def test_paired_keeps_the_same_indices_and_unpaired_does_not():
    shape, key = Shape(256, 256), DecisionKey(0, 1, 1)
    paired, free = (decide(NaiveConfig(paired=p), key, shape) for p in (True, False))
    assert paired.keep_2d.tolist() == paired.keep_3d_tokens.tolist()
    assert free.keep_2d.tolist() != free.keep_3d_tokens.tolist()
    with pytest.raises(ConfigError, match="do not pair"):
        NAIVE.initial_state(NaiveConfig(paired=True), Shape(512, 256))


def test_one_modality_only():
    shape, key = Shape(256, 256), DecisionKey(0, 1, 1)
    only_2d, only_3d = (decide(NaiveConfig(modalities=m), key, shape) for m in ("2d", "3d"))
    assert only_2d.keep_3d_tokens.all()
    assert only_3d.keep_2d.all()
    assert only_2d.keep_2d.sum() == only_3d.keep_3d_tokens.sum() == 128
    with pytest.raises(ConfigError, match="no point tokens"):
        NAIVE.initial_state(NaiveConfig(modalities="3d"), Shape(256, 0))


def test_every_pass_keeps_the_same_point_tokens():
    key = DecisionKey(0, 1, 1)
    decision = decide(NaiveConfig(), key, Shape(256, 256))
    masks = [point_mask(decision, np.full(256, index - 1, np.int32), index, key) for index in range(3)]
    assert all(np.array_equal(mask, decision.keep_3d_tokens) for mask in masks)


@pytest.mark.parametrize(("name", "value"), [("rate", 1.0), ("rate", -0.1), ("redraw", "never"), ("seed", -1)])
def test_bad_options_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"pruner.{name} = "):
        NaiveConfig(**{name: value})
