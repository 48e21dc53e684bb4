"""A second run before any claim: it passes where bits are equal, and says where they are not."""

from dataclasses import replace

import numpy as np
import pytest

import replay.checking
from replay import Replay, check_replay
from tests.small import make_config
from tracekit.config import Configuration

CONFIGS = (
    make_config(),
    make_config("tri_stage", background_rate=0.5),
    make_config("tri_stage", "prefix_kv", name="kv"),
    Configuration.from_table(
        make_config("tri_stage").to_json() | {"name": "own", "observe": {"mode": "lagged"}}, "own"
    ),
)


@pytest.fixture(scope="module")
def result(small_trace):
    return Replay(small_trace).run(*CONFIGS)


def test_equal_runs_pass(result):
    found = check_replay(result)
    assert found.passed
    assert found.repeated == ("none", "tri_stage", "kv", "own")
    assert found.batched == ("none", "tri_stage", "kv")  # a lagged pruner's own feedback needs the forward pass
    assert found.to_json() == {
        "repeated": list(found.repeated),
        "batched": list(found.batched),
        "unclaimed": [],
        "problems": [],
        "passed": True,
    }


def test_one_bit_of_an_action_is_found(result):
    episodes = dict(result.episodes)
    first, second = episodes["kv"]
    step = second.steps[1]
    samples = step.result.samples.copy()
    samples[-1, 0, 0] = np.nextafter(samples[-1, 0, 0], 2, dtype=np.float32)
    changed = replace(step, result=replace(step.result, samples=samples))
    episodes["kv"] = (first, replace(second, steps=(second.steps[0], changed)))
    found = check_replay(replace(result, episodes=episodes))
    assert not found.passed
    assert found.problems == ("kv, episode close_laptop-3, step 2: another action in the second run",)


def test_a_batch_that_decides_otherwise_is_found(result, monkeypatch):
    decide = replay.checking.decide_cells

    def careless(inputs, configs, size):
        rows = decide(inputs, configs, size)
        if len(configs) > 1:
            rows[7] = {**rows[7], "decisions_digest": "0" * 64}
        return rows

    monkeypatch.setattr(replay.checking, "decide_cells", careless)
    found = check_replay(result)
    assert len(found.problems) == 2  # one per episode
    assert "in a batch it decides otherwise" in found.problems[0]


def test_another_environment_is_said(result):
    assert result.environment_differs == []
    elsewhere = {**result.recorded_fingerprint, "cpu": "another", "threads": 64}
    assert replace(result, recorded_fingerprint=elsewhere).environment_differs == ["cpu", "threads"]
    assert replace(result, recorded_fingerprint=elsewhere).to_json()["environment_differs"] == ["cpu", "threads"]
