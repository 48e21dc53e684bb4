"""Steps and executed actions are stamped when they happen; episodes without the stamps stay what they were."""

import time

from recorders import Recorder
from replay import Replay
from tests.recorders.support import EPISODE, record
from tests.small import make_config
from tracekit import keys
from tracekit.engine import Controller
from tracekit.store import Trace, prune_store, verify

STAMPS = (keys.STEP_START_NS, keys.ACTION_TIME_NS)


def test_steps_and_actions_are_stamped_when_they_happen(tmp_path, small_policy, observations):
    controller = Controller(small_policy, make_config())
    before, bounds = (time.monotonic_ns(), time.time_ns()), []
    with (
        Recorder(tmp_path / "trace", controller) as recorder,
        recorder.episode("close_box", observations[0].instruction, episode_id=EPISODE) as episode,
    ):
        for observation in observations:
            around = [time.monotonic_ns()]
            with episode.step(observation) as step:
                around.append(time.monotonic_ns())
                action = controller.act(observation)
                around.append(time.monotonic_ns())
                step.action = action
                around.append(time.monotonic_ns())
                time.sleep(0.01)
            bounds.append(around)
    stored = Trace.open(tmp_path / "trace").episode(EPISODE)
    started, acted = (stored.read(key).tolist() for key in STAMPS)
    for (entering, inside, computed, told), start, action in zip(bounds, started, acted, strict=True):
        assert entering <= start <= inside
        assert computed <= action <= told
    clock = stored.info.attributes["clock"]
    assert before[0] <= clock["monotonic_ns"] <= bounds[0][0]
    assert before[1] <= clock["unix_ns"] <= time.time_ns()


def test_a_step_without_an_executed_action_has_no_time_of_it(tmp_path, small_policy, observations):
    controller = Controller(small_policy, make_config())
    with (
        Recorder(tmp_path / "trace", controller) as recorder,
        recorder.episode("close_box", observations[0].instruction, episode_id=EPISODE) as episode,
        episode.step(observations[0]),
    ):
        controller.act(observations[0])
    stored = Trace.open(tmp_path / "trace").episode(EPISODE)
    assert keys.ACTION_EXECUTED not in stored
    assert keys.ACTION_TIME_NS not in stored
    assert keys.STEP_START_NS in stored


def test_an_episode_without_the_stamps_is_read_and_replayed(tmp_path, small_policy, observations):
    """As those that were recorded before there were any."""
    path = tmp_path / "trace"
    record(path, small_policy, observations)
    prune_store(path, STAMPS)
    assert verify(path).clean
    assert not set(STAMPS) & set(Trace.open(path).episode(EPISODE))
    assert Replay(path, policy="small").run(make_config()).summaries[0].matches_recording
