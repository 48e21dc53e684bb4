"""A trace's saliencies, conflicts and flicker against what its decisions say one by one."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from replay import analyse, replay_decisions
from tests.small import make_config
from tracekit.errors import ConfigError, TraceError
from tracekit.pruning.analysis import summary

MIDDLE = {"tau_2d": 0.3, "tau_3d": 0.5, "background_rate": 0.5}


def test_frames_cover_every_episode_step_and_region(small_trace):
    config = make_config("tri_stage", **MIDDLE)
    found = analyse(small_trace, config)
    decided = replay_decisions(small_trace, config)
    assert found.saliency["episode"].unique(maintain_order=True).to_list() == list(decided)
    assert set(found.saliency["task"]) == {"close_box", "close_laptop"}
    assert found.saliency.height == 4 * sum(map(len, decided.values()))
    assert summary(found.saliency, ("task", "phase", "region")).height == 2 * 2 * 4
    for name, decisions in decided.items():
        rows = found.conflicts.filter(pl.col("episode") == name)
        assert rows["conflicts"].to_list() == [int(one.conflict.sum()) for one in decisions if one.pruned]


def test_flicker_stands_beside_that_without_smoothing(small_trace):
    config = make_config("tri_stage", **MIDDLE)
    plain = dataclasses.replace(config, pruner=dataclasses.replace(config.pruner, stages=("s1", "s2")))
    frame = analyse(small_trace, config).flicker
    for smoothed, one in ((True, config), (False, plain)):
        decisions = replay_decisions(small_trace, one)["close_box-7"]
        rows = frame.filter((pl.col("episode") == "close_box-7") & (pl.col("stage_3") == smoothed))
        pruned = [step for step, decision in enumerate(decisions, 1) if decision.pruned]
        assert rows["step"].to_list() == pruned[1:]
        changed = [(decisions[t - 1].keep_2d != decisions[t - 2].keep_2d).mean() for t in pruned[1:]]
        np.testing.assert_allclose(rows["flicker_2d"], changed)
    assert set(analyse(small_trace, plain).flicker["stage_3"]) == {False}


def test_options_shape_the_averages(small_trace):
    base = analyse(small_trace, make_config("tri_stage", **MIDDLE)).saliency
    for option, column in (({"average": "ratio_of_sums"}, "m_2d_s1"), ({"clustering": "separate"}, "s_3d")):
        other = analyse(small_trace, make_config("tri_stage", **MIDDLE, **option)).saliency
        assert base[column].to_list() != other[column].to_list()


def test_one_episode_and_what_cannot_be_analysed(small_trace):
    assert set(analyse(small_trace, "default", episodes=["close_laptop-3"]).conflicts["task"]) == {"close_laptop"}
    with pytest.raises(ConfigError, match="one of the tri-stage pruner"):
        analyse(small_trace, make_config("naive"))
    with pytest.raises(TraceError, match="norms of feature 'logits' were not recorded"):
        analyse(small_trace, make_config("tri_stage", reduction={"feature": "logits"}))
