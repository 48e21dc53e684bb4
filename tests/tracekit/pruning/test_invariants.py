"""What follows from Algorithm 1 whatever the scores are."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracekit.pruning import DecisionKey, Scores, Shape, decision_digest
from tracekit.pruning.tri_stage import TriStageConfig, decide, decide_episode, initial_state

SHAPE = Shape(256, 256)
SEEDS = st.integers(0, 2**32 - 1)
TAUS = st.tuples(*[st.floats(0, 1, width=32)] * 2).map(sorted)


def random_scores(seed, steps=4, patches=256):
    """Scores with few and many points per patch, shares on both sides of the thresholds, and exact ties."""
    rng = np.random.default_rng(seed)
    points = rng.poisson(1.0, (steps, patches)).astype(np.int32)
    there = (points > 0).astype(np.float32)

    def numbers(scale):
        fine = rng.lognormal(0, 1, (steps, patches))
        return (scale * np.where(rng.random((steps, patches)) < 0.2, 1.0, fine)).astype(np.float32)

    a_3d = numbers(0.3) * there
    ortho = (a_3d * rng.random((steps, patches))).astype(np.float32)
    return Scores(numbers(1.0), numbers(0.2) * there, numbers(1.0), a_3d, ortho, points)


def run(scores_seed, uid=7, steps=4, **options):
    config = TriStageConfig(**options)
    return decide_episode(random_scores(scores_seed, steps), config, DecisionKey(config.seed, uid, 1), SHAPE)[0]


@settings(max_examples=60, deadline=None)
@given(SEEDS, TAUS)
def test_a_conflict_is_exactly_3d_alone_against_2d_alone(seed, taus):
    for decision in run(seed, tau_2d=taus[0], tau_3d=taus[1], object_2d_min=0.5, object_3d_max=0.2):
        np.testing.assert_array_equal(decision.conflict, (decision.s1 == 2) & (decision.s2 == 1))


@settings(max_examples=60, deadline=None)
@given(SEEDS, TAUS)
def test_an_active_patch_keeps_something_and_an_inactive_one_nothing(seed, taus):
    for decision in run(seed, tau_2d=taus[0], tau_3d=taus[1]):
        if decision.pruned:
            np.testing.assert_array_equal(decision.keep_2d | decision.keep_3d_patches, decision.s2 != 0)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.floats(0, 0.5, width=32), st.lists(st.floats(0.5, 1, width=32), min_size=2, max_size=2).map(sorted))
def test_tau_3d_never_changes_mask_3d_and_raising_it_keeps_more_2d(seed, tau_2d, taus):
    low, high = (run(seed, tau_2d=tau_2d, tau_3d=tau_3d) for tau_3d in taus)
    for one, other in zip(low, high, strict=True):
        np.testing.assert_array_equal(one.keep_3d_patches, other.keep_3d_patches)
        assert (one.keep_2d <= other.keep_2d).all()


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.floats(0.5, 1, width=32), st.lists(st.floats(0, 0.5, width=32), min_size=2, max_size=2).map(sorted))
def test_tau_2d_never_changes_mask_2d_and_raising_it_keeps_less_3d(seed, tau_3d, taus):
    low, high = (run(seed, tau_2d=tau_2d, tau_3d=tau_3d) for tau_2d in taus)
    for one, other in zip(low, high, strict=True):
        np.testing.assert_array_equal(one.keep_2d, other.keep_2d)
        assert (one.keep_3d_patches >= other.keep_3d_patches).all()


TESTS = {
    "tau_2d": lambda d: (d.s1 == 1, np.less),
    "tau_3d": lambda d: (d.s1 == 2, np.greater),
    "mu_3d": lambda d: ((d.s2 == 3), np.greater),
    "draw": lambda d: (d.s2 == 0, np.less),
}


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from(sorted(TESTS)), st.sampled_from(["step", "stratified"]))
def test_the_sign_of_a_margin_is_the_outcome_of_its_test(seed, name, draw):
    for decision in run(seed, draw=draw):
        margin = decision.margins[name]
        tested = ~np.isnan(margin)
        outcome, passes = TESTS[name](decision)
        if name == "tau_3d":
            tested &= decision.s1 != 1
        np.testing.assert_array_equal(passes(margin[tested], 0), outcome[tested])


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_margins_are_there_exactly_where_a_threshold_was_tested(seed):
    for decision in run(seed):
        tested = {name: ~np.isnan(margin) for name, margin in decision.margins.items()}
        robot, ground, thing = (decision.cluster == c for c in (1, 0, 2))
        np.testing.assert_array_equal(tested["mu_3d"], robot)
        np.testing.assert_array_equal(tested["mu_2d"], robot & (decision.s2 != 3))
        np.testing.assert_array_equal(tested["draw"], ground)
        for name in ("object_2d", "object_3d"):
            np.testing.assert_array_equal(tested[name], thing)
        for name in ("tau_2d", "tau_3d", "cluster"):
            assert tested[name].all()


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_a_cluster_margin_is_the_distance_to_the_nearest_cut(seed):
    scores = random_scores(seed)
    for decision, a_2d, a_3d in zip(run(seed), scores.attention_2d, scores.attention_3d, strict=True):
        values, margin = a_2d.astype(float) + a_3d, decision.margins["cluster"]
        centroids = [values[decision.cluster == c].mean() for c in (0, 1, 2)]
        cuts = np.array([(centroids[0] + centroids[1]) / 2, (centroids[1] + centroids[2]) / 2])
        distance = values[:, None] - cuts
        nearest = distance[np.arange(256), np.abs(distance).argmin(1)]
        np.testing.assert_allclose(margin, nearest, rtol=1e-9, atol=1e-9)
        np.testing.assert_array_equal(decision.cluster, (distance > 0).sum(1))


def test_inputs_and_state_are_never_written_to():
    scores = random_scores(3)
    state = initial_state(TriStageConfig(window="window_mean"), SHAPE)
    arrays = [getattr(scores, f.name) for f in dataclasses.fields(scores)] + list(state.to_arrays().values())
    for array in arrays:
        array.flags.writeable = False
    config = TriStageConfig(window="window_mean")
    _, after = decide(scores.step(0), state, config, DecisionKey(0, 7, 1), SHAPE)
    decide_episode(scores, config, DecisionKey(0, 7, 1), SHAPE, state=state)
    assert not state.updates.any()
    assert after.updates.all()


def test_episodes_order_and_threads_cannot_change_a_decision():
    uids = range(8)
    alone = {uid: decision_digest(run(uid, uid)) for uid in uids}
    with ThreadPoolExecutor(4) as pool:
        together = dict(
            zip(reversed(uids), pool.map(lambda uid: decision_digest(run(uid, uid)), reversed(uids)), strict=True)
        )
    assert together == alone
    states = {uid: initial_state(TriStageConfig(), SHAPE) for uid in uids}
    decisions = {uid: [] for uid in uids}
    for step in range(4):  # all episodes step by step, side by side
        for uid in uids:
            one, states[uid] = decide(
                random_scores(uid).step(step), states[uid], TriStageConfig(), DecisionKey(0, uid, step + 1), SHAPE
            )
            decisions[uid].append(one)
    assert {uid: decision_digest(each) for uid, each in decisions.items()} == alone


BFLOAT16 = 2.0**-8
"""Relative error of a float32 that is rounded to bfloat16, with room to spare."""


def stored_as_bfloat16(scores):
    """What scores are after they were stored with 8 significant bits; counts are stored whole."""
    rounded = {}
    for field in dataclasses.fields(scores):
        values = getattr(scores, field.name)
        if field.name != "points":
            values = ((values.view(np.uint32) + 0x8000) & 0xFFFF0000).view(np.float32)
        rounded[field.name] = values
    return Scores(**rounded)


def closest(decision, *names):
    """(N,) the smallest distance to any of the thresholds that were tested."""
    return np.nanmin([np.abs(decision.margins[name]) for name in names] + [np.full(256, np.inf)], axis=0)


@settings(max_examples=40, deadline=None)
@given(SEEDS, TAUS)
def test_the_dtype_of_storage_changes_close_calls_alone(seed, taus):
    options = {"tau_2d": taus[0], "tau_3d": taus[1], "object_2d_min": 0.5, "object_3d_max": 0.2}
    scores, key = random_scores(seed), DecisionKey(0, 7, 1)
    fine, _ = decide_episode(scores, TriStageConfig(**options), key, SHAPE)
    coarse, _ = decide_episode(stored_as_bfloat16(scores), TriStageConfig(**options), key, SHAPE)
    for one, other in zip(fine, coarse, strict=True):
        flipped = one.s1 != other.s1  # a share m = f₃/(f₂ + f₃) moves by at most 2·ε·m·(1 - m), smoothed or not
        assert (closest(one, "tau_2d", "tau_3d")[flipped] <= 0.6 * BFLOAT16).all()
        same = one.cluster == other.cluster
        flipped = same & (one.s2 != other.s2)  # a share and the mean of shares: twice 2·ε
        assert (closest(one, "mu_2d", "mu_3d", "object_2d", "object_3d")[flipped] <= 4.2 * BFLOAT16).all()
        assert not (flipped & (one.cluster == 0)).any()  # draws do not look at scores


def test_close_calls_do_change():
    flips = 0
    for seed in range(20):
        fine = random_scores(seed)
        one, other = (
            decide_episode(scores, TriStageConfig(), DecisionKey(0, 7, 1), SHAPE)[0]
            for scores in (fine, stored_as_bfloat16(fine))
        )
        flips += sum(int((a.s1 != b.s1).sum() + (a.s2 != b.s2).sum()) for a, b in zip(one, other, strict=True))
    assert flips > 10


def test_seed_and_episode_change_the_draws():
    base = decision_digest(run(1, 7))
    assert base == decision_digest(run(1, 7))
    assert base != decision_digest(run(1, 8))
    assert base != decision_digest(run(1, 7, seed=1))


def test_a_permutation_of_patches_permutes_what_is_not_drawn():
    config = TriStageConfig(background_rate=1.0)
    scores = random_scores(5)
    order = np.random.default_rng(0).permutation(256)
    shuffled = Scores(*(getattr(scores, f.name)[:, order] for f in dataclasses.fields(scores)))
    one, _ = decide_episode(scores, config, DecisionKey(0, 7, 1), SHAPE)
    other, _ = decide_episode(shuffled, config, DecisionKey(0, 7, 1), SHAPE)
    for a, b in zip(one, other, strict=True):
        for name in ("keep_2d", "keep_3d_patches", "s1", "s2", "cluster", "conflict"):
            np.testing.assert_array_equal(getattr(a, name)[order], getattr(b, name))


def test_the_digest_sees_masks_and_reasons_but_not_margins():
    decision = run(2)[1]
    assert decision_digest([decision]) == decision_digest([dataclasses.replace(decision, margins={})])
    flipped = decision.keep_2d.copy()
    flipped[0] = not flipped[0]
    other_reason = decision.s1.copy()
    other_reason[0] = 3 - other_reason[0]
    for change in (
        {"keep_2d": flipped},
        {"s1": other_reason},
        {"pruned": False},
        {"unprojected": "drop"},
        {"s2": None},
    ):
        assert decision_digest([decision]) != decision_digest([dataclasses.replace(decision, **change)])
    assert decision_digest([decision, decision]) != decision_digest([decision])


def test_first_step_and_warm_up():
    assert [d.pruned for d in run(1)] == [False, True, True, True]
    assert [d.pruned for d in run(1, prune_from=4)] == [False, False, False, True]
    assert [d.pruned for d in run(1, stages=("s1", "s2"))] == [True] * 4
    for decision in run(1)[:1]:
        assert decision.keep_2d.all()
        assert decision.keep_3d_patches.all()


def test_nothing_seen_nothing_pruned():
    state = initial_state(TriStageConfig(), SHAPE)
    decision, after = decide(None, state, TriStageConfig(), DecisionKey(0, 7, 1), SHAPE)
    assert not decision.pruned
    assert decision.keep_2d.all()
    assert after is state


@pytest.mark.parametrize("stages", [(), ("s3",), ("s1",), ("s2",), ("s1", "s3"), ("s2", "s3"), ("s1", "s2")])
def test_stages_switched_off(stages):
    for decision in run(1, stages=stages)[1:]:
        if "s1" not in stages:
            assert (decision.s1 == 3).all()
        if "s2" not in stages:
            assert (decision.s2 == 3).all()
            assert decision.cluster is None
        if not {"s1", "s2"} & set(stages):
            assert decision.keep_2d.all()
            assert decision.keep_3d_patches.all()


def test_everything_observed_is_nothing_withheld():
    scores = random_scores(4)
    config, key = TriStageConfig(cluster_input="smoothed"), DecisionKey(0, 7, 1)
    plain, after = decide_episode(scores, config, key, SHAPE)
    told, after_told = decide_episode(scores, config, key, SHAPE, observed=np.ones((4, 256), bool))
    assert decision_digest(plain) == decision_digest(told)
    for name, array in after.to_arrays().items():
        np.testing.assert_array_equal(array, after_told.to_arrays()[name])


def test_held_patches_hold_and_the_attention_of_the_others_is_rescaled():
    scores = random_scores(4, steps=2)
    config, key = TriStageConfig(), DecisionKey(0, 7, 1)
    half = np.arange(256) < 128
    doubled = dataclasses.replace(
        scores,
        attention_2d=scores.attention_2d[[0, 0]] * np.float32([[1], [2]]),
        attention_3d=scores.attention_3d[[0, 0]],
    )
    doubled = dataclasses.replace(doubled, attention_3d=doubled.attention_3d * np.float32([[1], [2]]))
    _, first = decide_episode(
        Scores(*(getattr(doubled, f.name)[:1] for f in dataclasses.fields(Scores))), config, key, SHAPE
    )
    _, after = decide_episode(doubled, config, key, SHAPE, observed=np.stack([np.ones(256, bool), half]))
    np.testing.assert_array_equal(after.updates, np.where(half, 2, 1))
    np.testing.assert_array_equal(after.smoothed[:, ~half], first.smoothed[:, ~half])
    np.testing.assert_allclose(after.attention, first.attention, rtol=1e-12)  # twice the shares, scaled back
