"""The writer's thread: order, back-pressure, dropped steps, errors that come up in the user's loop, no thread left."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from recorders import Recorder
from recorders.handover import Handover
from recorders.sim import Environment
from replay import Replay
from replay.decisions import replay_decisions
from tests.small import make_config
from tracekit import keys
from tracekit.capture import CaptureSpec
from tracekit.engine import Controller
from tracekit.errors import TraceError
from tracekit.pruning import Reduction
from tracekit.store import EpisodeWriter, Trace


@pytest.fixture(autouse=True)
def no_thread_left():
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "tracekit-writer"]


@pytest.fixture(scope="module")
def observation():
    return Environment("close_box").reset(7)


class Gate:
    """A `write` that waits until it is let through."""

    def __init__(self):
        self.open = threading.Event()
        self.began = threading.Event()
        self.seen = []

    def __call__(self, item):
        self.began.set()
        assert self.open.wait(30)
        self.seen.append(item)


def test_items_are_written_in_order():
    seen = []
    handover = Handover(seen.append, 2, "block")
    for item in range(50):
        assert handover.room() is not None
        handover.put(item)
    handover.finish()
    assert seen == list(range(50))
    assert handover.dropped == 0
    assert handover.longest <= 2


def test_a_full_queue_drops_whole_items_and_counts_them():
    gate = Gate()
    handover = Handover(gate, 1, "drop")
    handover.room()
    handover.put("being written")
    assert gate.began.wait(30)
    handover.room()
    handover.put("waits")
    assert handover.room() is None
    assert handover.room() is None
    gate.open.set()
    handover.finish()
    assert gate.seen == ["being written", "waits"]
    assert handover.dropped == 2


def test_a_full_queue_blocks_until_there_is_room():
    gate = Gate()
    handover = Handover(gate, 1, "block")
    handover.room()
    handover.put(0)
    assert gate.began.wait(30)
    handover.room()
    handover.put(1)
    threading.Timer(0.05, gate.open.set).start()
    assert handover.room() >= 30_000_000
    assert handover.blocked_ns >= 30_000_000
    handover.finish()
    assert gate.seen == [0, 1]


@pytest.mark.parametrize("overflow", ["block", "drop"])
def test_what_the_writer_raises_is_raised_in_the_loop(overflow):
    def fail(_item):
        raise ZeroDivisionError

    handover = Handover(fail, 1, overflow)
    handover.room()
    handover.put(0)
    with pytest.raises(ZeroDivisionError):
        handover.finish()
    with pytest.raises(ZeroDivisionError):
        handover.room()


def test_abandoning_throws_away_what_waits():
    gate = Gate()
    handover = Handover(gate, 4, "block")
    for item in range(3):
        handover.room()
        handover.put(item)
    assert gate.began.wait(30)
    threading.Timer(0.05, gate.open.set).start()
    handover.abandon()
    assert gate.seen == [0]


def record(path, policy, observations, config=None, **recorder):
    controller = Controller(policy, config or make_config())
    with (
        Recorder(path, controller, **recorder) as recording,
        recording.episode("close_box", observations[0].instruction, uid=5, episode_id="e") as episode,
    ):
        for observation in observations:
            with episode.step(observation) as step:
                step.action = controller.act(observation)
    return Trace.open(path).episode("e")


def test_dropped_steps_leave_gaps_that_only_pruners_without_memory_replay(
    tmp_path, small_policy, observation, monkeypatch
):
    """The writer is held at the first step, so that with room for one the third step and the fourth are dropped."""
    append, began, release = EpisodeWriter.append, threading.Event(), threading.Event()

    def held(writer, step):
        began.set()
        assert release.wait(30)
        append(writer, step)

    monkeypatch.setattr(EpisodeWriter, "append", held)
    path, controller = tmp_path / "trace", Controller(small_policy, make_config())
    with (
        Recorder(path, controller, queue_steps=1, overflow="drop") as recording,
        recording.episode("close_box", observation.instruction, uid=5, episode_id="e") as episode,
    ):
        for number in range(5):
            with episode.step(observation) as step:
                step.action = controller.act(observation)
            if number == 0:
                assert began.wait(30)
            if number == 3:
                release.set()
                while episode._handover._waiting:
                    pass
    stored = Trace.open(path).episode("e")
    assert stored.read(keys.STEP_NUMBER).tolist() == [1, 2, 5]
    assert stored.info.attributes["dropped_steps"] == 2
    assert stored.info.attributes["steps_taken"] == 5
    monkeypatch.undo()
    with pytest.raises(TraceError, match="control step 3 was not recorded"):
        replay_decisions(path, make_config("tri_stage"))
    decisions = replay_decisions(path, make_config("naive"))["e"]
    assert len(decisions) == 3
    whole = record(tmp_path / "whole", small_policy, [observation] * 5)
    assert whole.info.attributes["dropped_steps"] == 0
    fifth = replay_decisions(tmp_path / "whole", make_config("naive"))["e"][4]
    assert decisions[2].keep_2d.tobytes() == fifth.keep_2d.tobytes()
    np.testing.assert_array_equal(stored.read(keys.ACTION_NOISE, 2), whole.read(keys.ACTION_NOISE, 4))


def test_buffers_may_be_reused_by_the_sensor_and_actions_scaled_by_the_user(tmp_path, small_policy, observation):
    controller = Controller(small_policy, make_config())
    images = {view: image.copy() for view, image in observation.images.items()}
    shared = replace(observation, images=images)
    said, executed = [], []
    with (
        Recorder(tmp_path / "trace", controller) as recording,
        recording.episode("close_box", shared.instruction, episode_id="e") as episode,
    ):
        for _ in range(3):
            with episode.step(shared) as step:
                action = controller.act(shared)
                said.append(action.copy())
                action *= 0.5
                step.action = action
                executed.append(action.copy())
                action *= 0
                images["front"] += 1  # the robot has moved on, still inside the block
    stored = Trace.open(tmp_path / "trace").episode("e")
    for index in range(3):
        seen = stored.read(keys.image("front"), index)
        np.testing.assert_array_equal(seen, observation.images["front"] + np.uint8(index))
        np.testing.assert_array_equal(stored.read(keys.ACTION_POLICY, index), said[index])
        np.testing.assert_array_equal(stored.read(keys.ACTION_EXECUTED, index), executed[index])
    assert Replay(tmp_path / "trace", policy="small").run(make_config()).summaries[0].matches_recording


def test_a_clock_that_goes_backwards_is_counted(tmp_path, small_policy, observation):
    stamps = [100, 50, 60]
    episode = record(tmp_path / "trace", small_policy, [replace(observation, time_ns={"front": s}) for s in stamps])
    assert episode.info.attributes["clock_went_backwards"] == {"front": 1}
    assert episode.read(keys.time_ns("front")).tolist() == stamps


def test_numbers_that_are_not_finite_are_recorded_counted_and_refused(tmp_path, small_policy, observation, monkeypatch):
    """A forward pass that overflows in the first step: its scores are absent, those of the next are there."""
    step = Controller.step

    def overflowing(controller, *args, **kwargs):
        result = step(controller, *args, **kwargs)
        if controller.steps == 1:
            result.observables.norms["prenorm"][:2] = np.nan, np.inf
        return result

    monkeypatch.setattr(Controller, "step", overflowing)
    episode = record(tmp_path / "trace", small_policy, [observation] * 2)
    assert episode.info.attributes["nonfinite"] == {keys.norms("prenorm"): 2}
    assert not np.isfinite(episode.read(keys.norms("prenorm"), 0)[0, :2]).any()
    assert episode.present(keys.score(Reduction().digest, "norm_2d")).tolist() == [False, True]
    with pytest.raises(TraceError, match="has no 'scores/"):
        replay_decisions(tmp_path / "trace", make_config("tri_stage"))


def test_the_ledger_is_in_the_trace(tmp_path, small_policy, observation):
    episode = record(tmp_path / "trace", small_policy, [observation] * 2)
    overhead = episode.info.attributes["overhead_ns"]
    assert set(overhead) == {"hooks", "reduction", "queue_wait", "handover", "encode", "append"}
    assert overhead["hooks"]["sum"] == episode.read(keys.CAPTURE_HOOKS_NS).sum() > 0
    assert overhead["encode"]["sum"] == episode.read(keys.ENCODE_NS).sum() > 0
    assert overhead["append"]["max"] > 0
    assert episode.info.attributes["queue"] == {
        "steps": 8,
        "overflow": "block",
        "longest": episode.info.attributes["queue"]["longest"],
        "blocked_ns": episode.info.attributes["queue"]["blocked_ns"],
    }


def test_pruners_decide_from_recorded_observables(tmp_path, small_policy, observation):
    path = tmp_path / "trace"
    record(path, small_policy, [observation] * 4, capture=CaptureSpec.baselines())
    for kind, options in (
        ("sp_vla", {"budget": "fixed_r"}),
        ("sp_vla", {"budget": "velocity"}),
        ("vla_pruner", {"layer": 1, "window": 2}),
        ("fastv", {"layer": 1}),
    ):
        decisions = replay_decisions(path, make_config(kind, fps="pinned", **options))["e"]
        assert len(decisions) == 4, kind
        if options.get("budget") != "velocity":
            assert decisions[-1].pruned, kind
    result = Replay(path, policy="small").run(make_config("sp_vla", fps="pinned"))
    assert len(result.summaries) == 1


def test_an_observable_that_was_not_recorded_is_named(tmp_path, small_policy, observation):
    path = tmp_path / "trace"
    record(path, small_policy, [observation])
    with pytest.raises(TraceError, match=r"needs observables 'mean_all_rows'.*baselines"):
        replay_decisions(path, make_config("sp_vla", fps="pinned"))


@pytest.mark.parametrize(
    "options",
    [{"queue_steps": 0}, {"queue_steps": 1025}, {"queue_steps": 1.5}, {"queue_steps": True}, {"overflow": "wait"}],
)
def test_a_queue_that_cannot_be_is_refused(tmp_path, small_policy, options):
    with pytest.raises(TraceError, match="give 1 to 1024 steps"):
        Recorder(tmp_path / "trace", Controller(small_policy, make_config()), **options)
