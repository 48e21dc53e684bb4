import dataclasses
import math

import numpy as np
import polars as pl
import pytest

from tracekit.errors import ConfigError
from tracekit.pruning import Decision, DecisionKey, Scores, Shape
from tracekit.pruning.analysis import REGIONS, conflicts, flicker, saliency, summary
from tracekit.pruning.kmeans import kmeans_1d
from tracekit.pruning.tri_stage import TriStageConfig, decide_episode

SHAPE = Shape(256, 256)


def random_scores(steps=6, seed=0, noise=1.0):
    """An episode whose scores change a little from step to step."""
    rng = np.random.default_rng(seed)
    base = rng.lognormal(0, 1, (5, 1, 256))
    changed = base * rng.lognormal(0, noise, (5, steps, 256))
    points = np.broadcast_to(rng.poisson(1.0, 256), (steps, 256)).astype(np.int32)
    scale = np.array([1.0, 0.15, 1.0, 0.3, 0.2])[:, None, None]
    values = (changed * scale).astype(np.float32)
    values[[1, 3, 4]] *= points > 0
    return Scores(*values, points)


def decided(scores, **options):
    return decide_episode(scores, TriStageConfig(**options), DecisionKey(0, 1, 1), SHAPE)[0]


@pytest.mark.parametrize("average", ["mean_of_ratios", "ratio_of_sums"])
@pytest.mark.parametrize("clamp", [False, True])
def test_equations_1_2_5_and_6_patch_by_patch(average, clamp):
    scores = random_scores()
    decisions = decided(scores)
    frame = saliency(scores, decisions, task="close_box", episode="e", average=average, clamp=clamp)
    assert frame.height == 6 * 4
    for row in frame.iter_rows(named=True):
        t = row["step"] - 1
        cluster = decisions[t].cluster
        region = range(256) if row["region"] == "all" else np.flatnonzero(cluster == REGIONS.index(row["region"]))
        sums = dict.fromkeys(["f2", "f3", "a2", "a3", "ortho"], 0.0)
        ratios = {name: [] for name in ("m_2d_s1", "m_3d_s1", "m_2d_s2", "m_3d_s2")}
        totals = [0.0, 0.0]
        for p in region:
            f2, f3 = float(scores.norm_2d[t, p]), float(scores.norm_3d[t, p])
            a2, a3, ortho = (float(getattr(scores, n)[t, p]) for n in ("attention_2d", "attention_3d", "ortho_3d"))
            totals = [totals[0] + a2, totals[1] + a3]
            if scores.points[t, p] == 0:
                continue
            if clamp:
                ortho = min(ortho, a3)
            for name, value in zip(sums, (f2, f3, a2, a3, ortho), strict=True):
                sums[name] += value
            of_patch = (f2 / (f2 + f3), f3 / (f2 + f3), a2 / (a2 + a3), ortho / (a2 + a3))
            for name, value in zip(ratios, of_patch, strict=True):
                ratios[name].append(value)
        assert [row["s_2d"], row["s_3d"]] == pytest.approx(totals)
        assert row["s_total"] == row["s_2d"] + row["s_3d"]
        assert row["patches"] == len(region)
        assert row["patches_with_points"] == len(ratios["m_2d_s1"])
        if not ratios["m_2d_s1"]:
            assert row["m_2d_s1"] is None
            continue
        f, a = sums["f2"] + sums["f3"], sums["a2"] + sums["a3"]
        expected = {name: math.fsum(values) / len(values) for name, values in ratios.items()}
        if average == "ratio_of_sums":
            parts = (sums["f2"] / f, sums["f3"] / f, sums["a2"] / a, sums["ortho"] / a)
            expected = dict(zip(ratios, parts, strict=True))
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-12)
        assert row["m_2d_s1"] + row["m_3d_s1"] == pytest.approx(1)


def test_regions_tile_the_patches_and_equation_3_is_the_mean_over_steps():
    scores = random_scores()
    frame = saliency(scores, decided(scores), task="close_box")
    parts = (
        frame.filter(pl.col("region") != "all").group_by("step").agg(pl.col("s_total").sum(), pl.col("patches").sum())
    )
    whole = frame.filter(pl.col("region") == "all")
    joined = whole.join(parts, on="step", suffix="_sum")
    np.testing.assert_allclose(joined["s_total"], joined["s_total_sum"], rtol=1e-12)
    assert joined["patches_sum"].to_list() == [256] * 6
    table = summary(frame)
    assert table["region"].to_list() == ["all", "background", "object", "robot"]
    assert table["steps"].to_list() == [6] * 4
    assert table.filter(pl.col("region") == "all")["alpha_sem"].item() == pytest.approx(whole["s_total"].mean())
    phases = summary(frame, ("phase", "region"))
    assert phases.height == 8
    assert phases["steps"].to_list() == [3] * 8


def test_a_region_without_points_has_no_mean():
    scores = random_scores(2)
    flat = {name: getattr(scores, name) * 0 for name in ("norm_3d", "attention_3d", "ortho_3d", "points")}
    pointless = dataclasses.replace(scores, **flat)
    frame = saliency(pointless, decided(pointless))
    assert frame["m_3d_s1"].null_count() == frame.height
    assert frame["s_2d"].min() > 0


def test_separate_labels_the_3d_sums_by_their_own_two_sets():
    scores = random_scores(1)
    frame = saliency(scores, decided(scores, clustering="separate"), separate=True)
    labels = kmeans_1d(scores.attention_3d[0], 2).labels
    sums = dict(zip(frame["region"], frame["s_3d"], strict=True))
    assert sums["object"] == pytest.approx(float(scores.attention_3d[0][labels == 1].sum()))
    assert sums["robot"] == pytest.approx(float(scores.attention_3d[0][labels == 0].sum()))
    assert sums["background"] == 0


def test_decisions_without_sets_have_one_region():
    scores = random_scores(3)
    assert set(saliency(scores, decided(scores, stages=("s1", "s3")))["region"]) == {"all"}
    with pytest.raises(ConfigError, match="3 steps of scores and 2 decisions"):
        saliency(scores, decided(scores)[:2])


def test_conflicts_are_counted_among_active_patches():
    scores = random_scores()
    decisions = decided(scores, object_2d_min=0.3, object_3d_max=0.4, tau_3d=0.08)
    frame = conflicts(decisions)
    assert frame["step"].to_list() == [2, 3, 4, 5, 6]
    for row, decision in zip(frame.iter_rows(named=True), decisions[1:], strict=True):
        assert row["conflicts"] == sum((decision.s1 == 2) & (decision.s2 == 1))
        assert row["active"] == sum(decision.s2 != 0)
        assert row["rate"] == row["conflicts"] / row["active"]
    assert frame["conflicts"].sum() > 0


def test_flicker_is_the_share_of_changed_patches():
    masks = [np.array([1, 1, 0, 0], bool), np.array([1, 0, 0, 1], bool), np.array([1, 0, 0, 1], bool)]
    decisions = [Decision(mask, mask[::-1]) for mask in masks]
    assert flicker(decisions).rows() == [(2, 0.5, 0.5), (3, 0.0, 0.0)]
    by_token = [Decision(mask, None, keep_3d_tokens=mask) for mask in masks]
    assert flicker(by_token)["flicker_3d"].to_list() == [None, None]
    unpruned = [decisions[0], Decision(masks[1], masks[1], pruned=False), decisions[2]]
    assert flicker(unpruned).is_empty()


def test_smoothing_reduces_flicker():
    scores = random_scores(12, noise=0.5)
    with_s3, without = (flicker(decided(scores, stages=stages)) for stages in (("s1", "s3"), ("s1",)))
    assert with_s3["flicker_3d"].mean() < 0.8 * without["flicker_3d"].mean()
