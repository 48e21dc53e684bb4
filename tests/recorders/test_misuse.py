"""A loop that uses the recorder wrongly is told so where it happens, and loses no step that it took before."""

import time
from dataclasses import replace

import numpy as np
import pytest

from recorders import Recorder
from tests.recorders.support import one_episode, record
from tests.small import make_config
from tracekit import keys
from tracekit.engine import Controller
from tracekit.errors import TraceError, TracekitError
from tracekit.store import EpisodeWriter, Trace


@pytest.fixture
def controller(small_policy):
    return Controller(small_policy, make_config())


def take(episode, controller, observation, phase=None):
    with episode.step(observation, phase) as step:
        step.action = controller.act(observation)


def test_a_step_after_the_end_of_its_episode_is_refused(tmp_path, controller, observations):
    with Recorder(tmp_path / "trace", controller) as recording:
        with recording.episode("close_box", observations[0].instruction, episode_id="a") as first:
            take(first, controller, observations[0])
        with recording.episode("close_box", observations[0].instruction, episode_id="b") as second:
            take(second, controller, observations[0])
            with pytest.raises(TraceError, match="'a': a step was begun after the episode's block"):
                take(first, controller, observations[0])
            take(second, controller, observations[1])
    assert [(info.id, info.steps) for info in Trace.open(tmp_path / "trace").episodes] == [("a", 1), ("b", 2)]


def test_a_step_inside_another_one_is_refused(tmp_path, controller, observations):
    with (
        Recorder(tmp_path / "trace", controller) as recording,
        recording.episode("close_box", observations[0].instruction, episode_id="a") as episode,
    ):
        with episode.step(observations[0]):
            with (
                pytest.raises(TraceError, match="a step was begun inside another one"),
                episode.step(observations[0]),
            ):
                pytest.fail("the block of a refused step ran")
            controller.act(observations[0])
        take(episode, controller, observations[1])
    assert Trace.open(tmp_path / "trace").episode("a").info.steps == 2


def test_phase_and_executed_action_may_come_later_than_the_first_step(tmp_path, controller, observations):
    said = []
    with (
        Recorder(tmp_path / "trace", controller) as recording,
        recording.episode("close_box", observations[0].instruction, episode_id="a") as episode,
    ):
        for index, phase in enumerate([None, None, *(f"phase {number}" for number in range(130))]):
            with episode.step(observations[0], phase) as step:
                action = controller.act(observations[0])
                if index:
                    step.action = action
                said.append(action)
    stored = Trace.open(tmp_path / "trace").episode("a")
    assert stored.info.steps == 132
    assert stored.present(keys.PHASE).tolist() == [False] * 2 + [True] * 130
    assert stored.present(keys.ACTION_EXECUTED).tolist() == [False] + [True] * 131
    assert stored.info.attributes["phases"][stored.read(keys.PHASE, 131)] == "phase 129"
    np.testing.assert_array_equal(stored.read(keys.ACTION_EXECUTED, 1), said[1])


def without_points(observation):
    return replace(observation, points=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: replace(o, time_ns={**o.time_ns, "imu": 5}), "time stamp 'imu' .* is there in step 3 but missing"),
        (lambda o: replace(o, depth={}), "depth 'front' .* is missing in step 3 but of shape"),
        (without_points, "the point cloud .* is missing in step 3"),
        (lambda o: replace(o, points=o.points[:100]), r"the point cloud .* of shape \(100, 3\) in step 3"),
    ],
)
def test_a_step_with_other_arrays_than_the_first_is_refused_before_it_is_taken(
    tmp_path, controller, observations, change, message
):
    with (
        Recorder(tmp_path / "trace", controller) as recording,
        pytest.raises(TraceError, match=message),
    ):
        one_episode(recording, controller, [*observations, change(observations[0])], "a")
    assert controller.steps == 2
    info = Trace.open(tmp_path / "trace").episode("a").info
    assert (info.steps, info.truncated) == (2, True)


def test_an_executed_action_of_another_shape_is_refused_where_it_is_set(tmp_path, controller, observations):
    def loop(recording):
        with recording.episode("close_box", observations[0].instruction, episode_id="a") as episode:
            take(episode, controller, observations[0])
            with episode.step(observations[1]) as step:
                step.action = controller.act(observations[1])[:1]

    with (
        Recorder(tmp_path / "trace", controller) as recording,
        pytest.raises(TraceError, match=r"executed action has shape \(1, 10\), those before \(2, 10\)"),
    ):
        loop(recording)
    assert Trace.open(tmp_path / "trace").episode("a").info.steps == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "close box"}, "'close box-7' cannot be a name"),
        ({"episode_id": ""}, "'' cannot be a name"),
        ({"attributes": {"x": float("nan")}}, "not expressible as JSON"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_the_first_step(tmp_path, controller, observations, options, message):
    options = {"task": "close_box", "seed": 7, **options}
    with (
        Recorder(tmp_path / "trace", controller) as recording,
        pytest.raises(TracekitError, match=message),
        recording.episode(instruction=observations[0].instruction, **options),
    ):
        pytest.fail("the block of a refused episode ran")


def test_an_episode_that_was_cut_off_is_not_begun_again(tmp_path, controller, observations):
    path = tmp_path / "trace"
    record(path, controller.policy, observations, name="other")
    (path / "journal" / "running" / "a").mkdir()
    with (
        Recorder(path, controller) as recording,
        pytest.raises(TraceError, match="'a' was started before and not finished; run `tracekit repair`"),
        recording.episode("close_box", observations[0].instruction, episode_id="a"),
    ):
        pytest.fail("the block of a refused episode ran")


def test_a_refused_recorder_lets_go_of_the_store(tmp_path, controller, observations):
    class Stubborn(Controller):
        @property
        def options(self):
            return None

        @options.setter
        def options(self, options):
            if options is not None and options.capture is not None:
                raise RuntimeError("no options")

    path = tmp_path / "trace"
    with pytest.raises(RuntimeError), Recorder(path, Stubborn(controller.policy, controller.config)):
        pass
    record(path, controller.policy, observations)
    assert len(Trace.open(path).episodes) == 1


def test_steps_that_a_refusing_disk_takes_along_are_counted(tmp_path, small_policy, observations, monkeypatch):
    append_row = EpisodeWriter._append_row
    began = []

    def full(writer, name, spec, row):
        if writer.steps == 1:
            while len(began) < 4:
                time.sleep(0.01)  # until the loop has put a third step into the queue
            raise OSError(28, "No space left on device")
        return append_row(writer, name, spec, row)

    monkeypatch.setattr(EpisodeWriter, "_append_row", full)
    controller = Controller(small_policy, make_config())

    def loop(recording):
        with recording.episode("close_box", observations[0].instruction, episode_id="a") as episode:
            for _ in range(4):
                began.append(None)
                take(episode, controller, observations[0])

    with (
        Recorder(tmp_path / "trace", controller) as recording,
        pytest.raises(TraceError, match="No space left") as refused,
    ):
        loop(recording)
    assert refused.value.__notes__[0] == "later steps that still waited for the writer and are lost: 1"


def test_a_success_in_the_words_of_numpy_is_a_success(tmp_path, controller, observations):
    with (
        Recorder(tmp_path / "trace", controller) as recording,
        recording.episode("close_box", observations[0].instruction, episode_id="a") as episode,
    ):
        take(episode, controller, observations[0])
        episode.success = np.True_
    assert Trace.open(tmp_path / "trace").episode("a").info.success is True
