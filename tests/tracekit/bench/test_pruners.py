"""The versions that decisions are timed against do the same work; and the report says what it measured."""

import dataclasses
import json

import numpy as np
import pytest

from tracekit.bench import bench_pruners
from tracekit.bench.literal import LiteralState, decide_literally, sets_by_every_cut, sets_by_scikit_learn
from tracekit.bench.pruners import DECISION_STAGES, PAPER_MS, _seconds
from tracekit.errors import ConfigError
from tracekit.pruning import DecisionKey, Shape
from tracekit.pruning.kmeans import kmeans_1d
from tracekit.pruning.tri_stage import TriStageConfig, decide_episode
from tracekit.testing import random_scores


@pytest.mark.parametrize("seed", range(3))
def test_the_literal_version_decides_as_the_compiled_one(seed):
    shape, steps = Shape(64, 64), 9  # beyond k, where Eq. 9 takes over
    scores = random_scores(shape, steps, seed)
    decisions, _ = decide_episode(scores, TriStageConfig(), DecisionKey(0, seed, 1), shape)
    state = LiteralState()
    for step, decision in enumerate(decisions):
        key = DecisionKey(0, seed, step + 1)
        keep_2d, keep_3d = decide_literally(scores.step(step), state, key, sets_by_every_cut)
        assert keep_2d == decision.keep_2d.tolist()
        assert keep_3d == decision.keep_3d_patches.tolist()


def test_scikit_learn_gives_three_sets_of_the_same_names():
    values = np.concatenate([np.full(20, 1.0), np.full(5, 5.0), np.full(3, 9.0)]) + np.linspace(0, 0.1, 28)
    assert sets_by_scikit_learn(values).tolist() == sets_by_every_cut(values).tolist() == [0] * 20 + [1] * 5 + [2] * 3
    assert kmeans_1d(values).labels.tolist() == sets_by_every_cut(values).tolist()


def test_the_report_has_the_figures_by_their_names():
    report = bench_pruners(rounds=1, kinds=["tri_stage", "none"])
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert list(data["pruners"]) == ["tri_stage", "tri_stage_scikit_learn", "tri_stage_literal", "none"]
    ours = data["pruners"]["tri_stage"]
    assert set(ours) >= {"single_ms", "batched_us", "reduction_ms", "stages_ms", "total_ms"}
    assert ours["total_ms"] == pytest.approx(ours["single_ms"] + ours["reduction_ms"])
    assert set(ours["stages_ms"]) == set(DECISION_STAGES)
    assert ours["in_one_call"]
    assert ours["episode_steps"] == 1000
    assert data["pruners"]["none"]["reduction_ms"] is None
    assert data["pruners"]["none"]["stages_ms"] is None
    assert data["paper_ms"] == PAPER_MS
    assert sum(ms for stage, ms in PAPER_MS.items() if stage != "full") == PAPER_MS["full"]
    for cost in report.pruners.values():
        figures = [value for value in dataclasses.astuple(cost) if isinstance(value, float)]
        assert all(figure >= 0 for figure in figures)


def test_a_figure_is_the_time_of_one_call():
    calls = []
    assert _seconds(lambda: calls.append(1), 5) >= 0
    assert len(calls) == 5


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        bench_pruners(rounds=0)
    with pytest.raises(ConfigError, match="no such pruner; there are: none, naive"):
        bench_pruners(kinds=["tristage"])
