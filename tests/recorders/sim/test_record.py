"""Recording the simulator: whole episodes, and refusals before anything is simulated."""

import numpy as np
import pytest

import recorders.sim.record
from recorders.sim import episode_uid
from recorders.sim.record import record_simulator
from tests.small import make_policy, record_trace
from tracekit import keys
from tracekit.errors import ConfigError, PolicyError, TraceError
from tracekit.model import save_policy
from tracekit.store import Trace


def test_the_simulator_is_recorded_in_whole_episodes(tmp_path):
    summary = record_simulator(["close_box"], 1, 3, tmp_path / "trace", policy="small")
    trace = Trace.open(tmp_path / "trace")
    (info,) = trace.episodes
    assert info.id == "close_box-3"
    assert info.success is True
    assert 5 <= info.steps <= 16
    assert info.uid == episode_uid("close_box", 3)
    assert "push" in info.attributes["phases"]
    assert trace.episode(info.id).read(keys.ACTION_EXECUTED).shape == (info.steps, 1, 10)
    assert trace.attributes["driver"] == "expert"
    assert trace.attributes["source"]["kind"] == "simulator"
    assert trace.attributes["fingerprint"]["threads"] == trace.attributes["execution"]["threads"] == 2
    assert summary.to_json()["bytes"] == trace.nbytes
    assert summary.trained is False


@pytest.fixture
def no_simulation(monkeypatch):
    def simulate(*_):
        raise AssertionError("something was simulated")

    monkeypatch.setattr(recorders.sim.record, "_record_episode", simulate)


@pytest.mark.usefixtures("no_simulation")
def test_unusable_requests_are_refused_before_anything_is_simulated_or_written(tmp_path):
    path = tmp_path / "trace"
    for tasks, episodes, seed, words in (
        (["close_box"], 0, 0, "--episodes 0"),
        (["close_box"], 100_001, 0, "give 1 to 100000"),
        (["close_box"], 1, -1, "--seed -1: give a non-negative integer"),
        (["close_bok"], 1, 0, "close_box"),
        (["close_box", "close_box"], 1, 0, "twice"),
    ):
        with pytest.raises(ConfigError, match=words):
            record_simulator(tasks, episodes, seed, path, policy="small")
        assert not path.exists()
    save_policy(make_policy(points=512), tmp_path / "policy")
    for policy, words in (("smal", "no policy 'smal'"), (str(tmp_path / "policy"), "point cloud has shape")):
        with pytest.raises(PolicyError, match=words):
            record_simulator(["close_box"], 1, 0, path, policy=policy)
        assert not path.exists()


@pytest.mark.usefixtures("no_simulation")
def test_a_policy_drives_on_no_scene_that_is_for_training(tmp_path):
    with pytest.raises(ConfigError, match="are for training"):
        record_simulator(["close_box"], 2, 999_999, tmp_path / "trace", policy="small", drive="policy")
    with pytest.raises(AssertionError, match="something was simulated"):
        record_simulator(["close_box"], 2, 999_999, tmp_path / "trace", policy="small", drive="expert")


def test_a_duplicate_is_refused_before_anything_is_simulated(tmp_path, small_trace, no_simulation):
    with pytest.raises(TraceError, match="'close_laptop-3' is already there"):
        record_simulator(["close_laptop"], 4, 0, small_trace, policy="small")


def test_the_same_recording_twice_is_the_same(tmp_path, small_policy, small_trace):
    """Time stamps and timings apart, which are measured."""
    again = record_trace(tmp_path / "trace", small_policy, (("close_box", 7, 4), ("close_laptop", 3, 2)))
    for info in Trace.open(small_trace).episodes:
        one, other = Trace.open(small_trace).episode(info.id), Trace.open(again).episode(info.id)
        assert one.keys() == other.keys()
        for key in one:
            if "time_ns" not in key and not key.startswith("timing/"):
                assert one.read(key).tobytes() == other.read(key).tobytes(), key


def test_where_the_policy_drives_its_action_is_executed(tmp_path, short_episodes):
    for drive, same in (("policy", True), ("expert", False)):
        record_simulator(["close_box"], 1, 3, tmp_path / drive, policy="small", drive=drive)
        episode = Trace.open(tmp_path / drive).episode("close_box-3")
        executed, proposed = episode.read(keys.ACTION_EXECUTED)[:, 0], episode.read(keys.ACTION_POLICY)[:, 0]
        assert np.array_equal(executed, proposed) == same


@pytest.mark.usefixtures("no_simulation")
def test_a_blind_policy_is_not_shown_what_it_was_trained_without(tmp_path):
    for drive in ("policy", "expert"):
        with pytest.raises(PolicyError, match="--policy small-blind: was trained without eyes"):
            record_simulator(["close_box"], 1, 3, tmp_path / "trace", policy="small-blind", drive=drive)
    assert not list(tmp_path.iterdir())


def test_an_episode_that_was_started_and_not_finished_is_refused_before_another_is_recorded(tmp_path, short_episodes):
    path = tmp_path / "trace"
    record_simulator(["close_box"], 1, 3, path, policy="small")
    (path / "journal" / "running" / "close_box-4").mkdir()  # as a killed recording leaves it
    with pytest.raises(TraceError, match="'close_box-4' was started and is not finished; wait where"):
        record_simulator(["close_laptop", "close_box"], 1, 4, path, policy="small")
    assert [info.id for info in Trace.open(path).episodes] == ["close_box-3"]
