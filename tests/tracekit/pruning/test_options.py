"""What each option of the tri-stage pruner does, shown where it matters. Exactness is the oracle's business."""

import dataclasses

import numpy as np
import pytest

from tracekit.pruning import DecisionKey, Shape, decision_digest, point_mask
from tracekit.pruning.arrays import new_outcome
from tracekit.pruning.rule import rule_of
from tracekit.pruning.stages import background
from tracekit.pruning.tri_stage import TriStageConfig, decide_episode
from tracekit.testing import random_scores

SHAPE = Shape(256, 256)
STEPS = 10
SCORES = random_scores(SHAPE, STEPS, seed=5)
BACKGROUND, ROBOT, OBJECT = 0, 1, 2


def run(scores=SCORES, shape=SHAPE, uid=9, patch=None, **options):
    config = TriStageConfig(**options)
    return decide_episode(scores, config, DecisionKey(config.seed, uid, 1), shape, patch=patch)[0]


DEFAULT = run()


@pytest.mark.parametrize(
    "options",
    [
        {"stages": ("s1", "s2")},
        {"modalities": "2d"},
        {"modalities": "3d"},
        {"seed": 1},
        {"tau_2d": 0.0},
        {"tau_3d": 0.1},
        {"beta": 0.0},
        {"k": 2},
        {"window": "window_mean", "k": 3},
        {"prune_from": 4},
        {"budget": "soft"},
        {"ortho": "clamp", "object_3d_max": 0.15, "object_2d_min": 0.5},
        {"clustering": "separate"},
        {"cluster_input": "smoothed"},
        {"cluster_order": "inverse"},
        {"baseline": "all_patches"},
        {"baseline": "per_set"},
        {"object_2d_min": 0.3, "object_3d_max": 0.5},
        {"object_rule": "quantiles"},
        {"background_rate": 0.5},
        {"draw": "sticky"},
        {"draw": "stratified"},
        {"robot_empty": "keep_2d"},
        {"unprojected_points": "drop"},
        {"protect": "all_2d"},
        {"protect": "object_2d", "tau_3d": 0.08},
    ],
    ids=str,
)
def test_every_option_changes_what_is_decided(options):
    scores = SCORES
    base = {}
    if "ortho" in options:  # only where ‖ortho‖₁ exceeds ‖α_3D‖₁ is there anything to clamp
        scores = dataclasses.replace(SCORES, ortho_3d=SCORES.attention_3d * 4)
        base = {name: value for name, value in options.items() if name != "ortho"}
    if "protect" in options:
        base = {name: value for name, value in options.items() if name != "protect"}
    assert decision_digest(run(scores, **options)) != decision_digest(run(scores, **base))


def test_one_modality_computes_both_masks_and_keeps_the_other_whole():
    for both, only_2d, only_3d in zip(DEFAULT, run(modalities="2d"), run(modalities="3d"), strict=True):
        np.testing.assert_array_equal(only_2d.keep_2d, both.keep_2d)
        np.testing.assert_array_equal(only_3d.keep_3d_patches, both.keep_3d_patches)
        assert only_2d.keep_3d_patches.all()
        assert only_3d.keep_2d.all()
        assert only_2d.unprojected == "keep"


def test_beta_0_has_no_memory_and_beta_1_freezes_after_the_warm_up():
    raw = run(stages=("s1", "s2"))
    forgetful, frozen = run(beta=0.0, k=1), run(beta=1.0, k=3)
    for step in range(STEPS):
        for name in ("m_2d_s1", "m_3d_s2"):
            np.testing.assert_array_equal(forgetful[step].indicators[name], raw[step].indicators[name])
        if step > 2:
            np.testing.assert_array_equal(frozen[step].indicators["m_3d_s1"], frozen[1].indicators["m_3d_s1"])


def test_the_warm_up_is_the_running_mean():
    raw = run(stages=("s1", "s2"))
    slow = run(k=STEPS + 1)
    for step in range(STEPS):
        mean = np.mean([d.indicators["m_2d_s2"] for d in raw[: step + 1]], axis=0)
        np.testing.assert_allclose(slow[step].indicators["m_2d_s2"], mean, rtol=1e-12)


def test_window_mean_forgets_what_is_older_than_k():
    raw = run(stages=("s1", "s2"))
    window = run(window="window_mean", k=3)
    mean = np.mean([d.indicators["m_2d_s2"] for d in raw[6:9]], axis=0)
    np.testing.assert_allclose(window[8].indicators["m_2d_s2"], mean, rtol=1e-12)


def test_smoothed_clusters_follow_the_smoothed_score():
    for decision in run(cluster_input="smoothed"):
        score = decision.indicators["cluster_score"]
        assert score[decision.cluster == OBJECT].min() > score[decision.cluster == ROBOT].max()
        assert score[decision.cluster == ROBOT].min() > score[decision.cluster == BACKGROUND].max()


def test_inverse_order_swaps_object_and_background():
    for plain, inverse in zip(DEFAULT, run(cluster_order="inverse"), strict=True):
        np.testing.assert_array_equal(inverse.cluster, 2 - plain.cluster)


def test_separate_clusters_read_the_2d_attention_alone():
    changed = dataclasses.replace(SCORES, attention_3d=SCORES.attention_3d[:, ::-1].copy())
    for one, other in zip(run(clustering="separate"), run(changed, clustering="separate"), strict=True):
        np.testing.assert_array_equal(one.cluster, other.cluster)


def test_background_rates_0_and_1_and_the_stratified_count():
    for keeps, drops, counted in zip(
        run(background_rate=0.0), run(background_rate=1.0), run(background_rate=0.9, draw="stratified"), strict=True
    ):
        ground = keeps.cluster == BACKGROUND
        assert (keeps.s2[ground] == 3).all()
        assert (drops.s2[ground] == 0).all()
        assert (counted.s2[ground] == 0).sum() == round(0.9 * ground.sum())


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.5, 0.6, 1.0])
def test_of_equal_draws_the_stratified_count_takes_the_lower_indices(rate):
    shape = Shape(10, 10)
    draws = np.array([0.5, 0.25, 0.5, 0.5, 0.0, 0.5, 0.75, 0.5, 0.25, 0.5])
    out = new_outcome((), 10, 10)
    out.cluster[:], out.cluster[3] = BACKGROUND, ROBOT
    background(rule_of(TriStageConfig(draw="stratified"), shape), draws, rate, out)
    order = [patch for patch in np.argsort(draws, kind="stable") if patch != 3]
    assert set(np.flatnonzero(out.s2 == 0)) == set(order[: round(rate * 9)])
    assert np.isnan(out.margins[7, 3])


def test_the_background_is_dropped_with_the_given_probability():
    dropped = np.concatenate([d.s2[d.cluster == BACKGROUND] == 0 for uid in range(40) for d in run(uid=uid)])
    assert dropped.mean() == pytest.approx(0.9, abs=4 * (0.09 / dropped.size) ** 0.5)


def test_a_sticky_draw_is_that_of_step_1():
    sticky = run(draw="sticky")
    draws = [np.where(d.cluster == BACKGROUND, d.margins["draw"] + 0.9, np.nan) for d in sticky]
    for draw in draws[1:]:
        both = ~np.isnan(draw) & ~np.isnan(draws[0])
        assert both.any()
        np.testing.assert_array_equal(draw[both], draws[0][both])
    moving = [np.where(d.cluster == BACKGROUND, d.margins["draw"], np.nan) for d in DEFAULT[:2]]
    both = ~np.isnan(moving[0]) & ~np.isnan(moving[1])
    assert (moving[0][both] != moving[1][both]).any()


def test_robot_patches_below_both_means():
    for drop, keep in zip(DEFAULT, run(robot_empty="keep_2d"), strict=True):
        empty = (drop.cluster == ROBOT) & (drop.s2 == 0)
        assert (keep.s2[empty] == 1).all()
        np.testing.assert_array_equal(keep.s2[~empty], drop.s2[~empty])


def test_protect_adds_2d_where_something_is_kept():
    plain = run(tau_3d=0.08)
    for name, where in (("object_2d", lambda d: d.cluster == OBJECT), ("all_2d", lambda d: d.s2 >= 0)):
        for free, protected in zip(plain[1:], run(tau_3d=0.08, protect=name)[1:], strict=True):
            touched = where(free) & (free.s2 != 0)
            np.testing.assert_array_equal(protected.keep_2d, free.keep_2d | touched)
            np.testing.assert_array_equal(protected.keep_3d_patches, free.keep_3d_patches)


def test_quantiles_ask_for_the_upper_and_lower_tenth():
    for decision in run(object_rule="quantiles"):
        thing = decision.cluster == OBJECT
        for name, indicator, q in (("object_2d", "m_2d_s2", 0.9), ("object_3d", "m_3d_s2", 0.1)):
            values = decision.indicators[indicator][thing]
            np.testing.assert_allclose(values - decision.margins[name][thing], np.quantile(values, q), rtol=1e-12)


@pytest.mark.parametrize(("rule", "low", "high"), [("keep", 1, 1), ("drop", 0, 0), ("random", 0.01, 0.6)])
def test_unprojected_points(rule, low, high):
    patch = np.concatenate([np.arange(128), np.full(128, -1)]).astype(np.int32)
    decision = run(unprojected_points=rule)[5]
    assert low <= point_mask(decision, patch, 1, DecisionKey(0, 9, 6))[128:].mean() <= high


def test_a_moving_view_is_not_smoothed_unless_asked_for():
    shape = Shape(512, 256, 2, (False, True))
    scores = random_scores(shape, 5, seed=2)
    raw = run(scores, shape, stages=("s1", "s2"))[4].indicators["m_3d_s1"]
    off, on = (run(scores, shape, moving_view=choice)[4].indicators["m_3d_s1"] for choice in ("off", "on"))
    np.testing.assert_array_equal(off[256:], raw[256:])
    np.testing.assert_array_equal(off[:256], on[:256])
    assert (on[256:] != raw[256:]).any()
    assert (on[:256] != raw[:256]).any()


@pytest.mark.parametrize("rate", [0.5, 0.6, 0.7, 0.8])
def test_budgets_reach_the_rate_where_the_threshold_rule_does_not(rate):
    patch = np.random.default_rng(0).integers(-1, 256, (STEPS, 256)).astype(np.int32)
    hard = run(patch=patch, budget="hard_topk", rate=rate)
    soft = run(budget="soft", rate=rate)
    for by_count, by_threshold in zip(hard[1:], soft[1:], strict=True):
        assert by_count.keep_2d.sum() == by_count.keep_3d_tokens.sum() == round(256 * (1 - rate))
        notes = by_threshold.notes
        assert notes["target_rate"] == rate
        assert (
            abs(notes["reached_rate"] - rate) < 0.02
            or notes["background_rate"] in {0.0, 1.0}
            or notes["gap_closed"] > 0
        )
        assert notes["gap_closed"] == 0 or notes["background_rate"] > 0.9
    assert not DEFAULT[1].notes


def test_a_policy_without_points():
    shape = Shape(256, 0)
    scores = dataclasses.replace(
        SCORES, **{name: getattr(SCORES, name) * 0 for name in ("norm_3d", "attention_3d", "ortho_3d", "points")}
    )
    for step, decision in enumerate(run(scores, shape)):
        assert decision.keep_3d_patches is None
        assert decision.keep_3d_tokens is None
        assert (decision.s1 == 1).all()
        smoothed = decision.indicators["m_2d_s2"]
        robot, thing = decision.cluster == ROBOT, decision.cluster == OBJECT
        np.testing.assert_array_equal(decision.s2[robot] == 1, smoothed[robot] > smoothed.mean())
        assert (decision.s2[thing] == 1).all()
        assert not (decision.s2 & 2).any()
        if step == 0:
            np.testing.assert_array_equal(smoothed, scores.attention_2d[0])
