"""Throughput mode: several steps at once, equal to latency mode up to rounding, decisions included."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from replay import Replay, TimingOptions
from tests.small import make_config
from tracekit.config import Configuration
from tracekit.engine import Controller, run_together
from tracekit.engine import together as module
from tracekit.errors import ConfigError

CASES = {
    "none": make_config(name="none"),
    "naive": make_config("naive", "prefix_kv", name="naive"),
    "current": make_config("tri_stage", "prefix_kv", name="current", background_rate=0.5),
    "full": make_config("tri_stage", name="full", background_rate=0.5),
}


def throughput(config):
    return replace(config, execution=replace(config.execution, mode="throughput"))


def lagged(name="lagged"):
    table = make_config("tri_stage", "prefix_kv", name=name, background_rate=0.5).to_json()
    return Configuration.from_table({**table, "observe": {"mode": "lagged", "refresh_every": 2}}, name)


@pytest.fixture(scope="module")
def both(small_trace):
    configs = [*CASES.values(), lagged()]
    return Replay(small_trace).run(*configs), Replay(small_trace).run(*(throughput(config) for config in configs))


def test_decisions_are_those_of_latency_mode_and_actions_equal_to_rounding(both):
    latency, together = both
    for one, other in zip(latency.summaries, together.summaries, strict=True):
        assert one.decisions_digest == other.decisions_digest
        assert other.config.labels == ("throughput",)
        assert other.matches_recording is None
        for ours, theirs in zip(latency.episodes[one.config.name], together.episodes[one.config.name], strict=True):
            assert ours.id == theirs.id
            for a, b in zip(ours.steps, theirs.steps, strict=True):
                np.testing.assert_array_equal(a.result.kept, b.result.kept)
                error = np.abs(a.result.samples - b.result.samples).max() / np.abs(b.result.samples).max()
                assert error < 1e-5


def test_tails_of_several_steps_are_one_product(small_trace, small_policy, monkeypatch):
    batches, own = [], type(small_policy).forward_together

    def spy(self, rows, positions, caches):
        batches.append([len(one) for one in rows])
        return own(self, rows, positions, caches)

    monkeypatch.setattr(type(small_policy), "forward_together", spy)
    Replay(small_trace).run(throughput(lagged()), throughput(CASES["naive"]))
    assert [4] * 6 in batches  # two episodes under two configurations and without pruning


def test_no_time_is_claimed_for_steps_computed_together(small_trace):
    result = Replay(small_trace, episodes=["close_laptop-3"]).run(
        throughput(CASES["naive"]), timing=TimingOptions(steps=2, rounds=1)
    )
    row = result.to_json()["configurations"][0]
    assert row["step_ms"] is None
    assert row["speedup"] is None


def test_the_order_is_always_the_same(small_trace, both):
    again = Replay(small_trace).run(*(throughput(config) for config in [*CASES.values(), lagged()]))
    assert [one.actions_digest for one in again.summaries] == [one.actions_digest for one in both[1].summaries]


def test_more_jobs_than_lanes(small_trace, both, monkeypatch):
    monkeypatch.setattr(module.run_together, "__defaults__", (2,))
    narrow = Replay(small_trace).run(*(throughput(config) for config in [*CASES.values(), lagged()]))
    assert [one.decisions_digest for one in narrow.summaries] == [one.decisions_digest for one in both[0].summaries]


def test_a_job_that_fails_ends_the_others(small_policy):
    before = threading.active_count()
    rows, positions = torch.zeros(4, 32), torch.arange(4)

    def fine(beside):
        for _ in range(3):
            beside(rows, positions, None)
        return 1

    def failing(beside):
        beside(rows, positions, None)
        raise ValueError("halfway")

    assert run_together(small_policy, [fine, fine], make_config().execution) == [1, 1]
    with pytest.raises(ValueError, match="halfway"):
        run_together(small_policy, [fine, failing, fine], make_config().execution, 2)
    assert threading.active_count() == before


def test_a_policy_that_computes_one_step_at_a_time_is_refused():
    with pytest.raises(ConfigError, match="needs a policy with forward_together"):
        run_together(Controller.__new__(Controller), [], make_config().execution)  # type: ignore[arg-type]
