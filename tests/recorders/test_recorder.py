"""The recorder writes down what happened, changes nothing of it, and leaves nothing half-written."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from recorders import Recorder
from recorders.sim import episode_uid
from tests.recorders.support import EPISODE, act, ids, one_episode, record
from tests.small import make_config
from tracekit import keys
from tracekit.camera import Camera
from tracekit.capture import CaptureSpec
from tracekit.engine import Controller, decision_shape
from tracekit.errors import TraceError
from tracekit.philox import action_noise, fps_starts
from tracekit.profiling import STAGES
from tracekit.pruning import Reduction, reduce
from tracekit.records import recorded_draws, recorded_observation, recorded_scores
from tracekit.store import Trace


@pytest.mark.parametrize("kind", ["none", "tri_stage"])
def test_recording_changes_no_bit_of_the_actions(tmp_path, small_policy, observations, kind):
    config = make_config(kind)
    without = act(small_policy, config, observations)
    results, actions = record(tmp_path / "trace", small_policy, observations, config=config)
    for plain, recorded, executed in zip(without, results, actions, strict=True):
        assert plain.samples.tobytes() == recorded.samples.tobytes()
        assert plain.action.tobytes() == recorded.action.tobytes() == executed.tobytes()
    again = act(small_policy, config, observations)  # and the policy is as it was
    assert again[0].samples.tobytes() == without[0].samples.tobytes()


def test_the_recorder_draws_no_random_number(tmp_path, small_policy, observations):
    torch.manual_seed(4)
    np.random.seed(4)  # noqa: NPY002  (the global state is what must not be touched)
    before = torch.get_rng_state(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    record(tmp_path / "trace", small_policy, observations)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tobytes() == before[1]  # noqa: NPY002


def test_the_options_of_the_controller_are_put_back(tmp_path, small_policy, observations):
    controller = Controller(small_policy, make_config())
    before = controller.options
    with pytest.raises(KeyError), Recorder(tmp_path / "trace", controller):
        raise KeyError
    assert controller.options is before


def test_what_is_stored_is_what_happened(tmp_path, small_policy, observations):
    results, actions = record(tmp_path / "trace", small_policy, observations)
    episode = Trace.open(tmp_path / "trace").episode(EPISODE)
    assert episode.info.steps == 2
    for index, (observation, result, action) in enumerate(zip(observations, results, actions, strict=True)):
        expected = {
            keys.image("front"): observation.images["front"],
            keys.depth("front"): observation.depth["front"],
            keys.segmentation("front"): observation.segmentation["front"],
            keys.time_ns("front"): observation.time_ns["front"],
            keys.POINTS: observation.points,
            keys.STATE: observation.state,
            keys.TEXT_IDS: result.text_ids,
            keys.norms("prenorm"): result.observables.norms["prenorm"][None],
            keys.norms("postnorm"): result.observables.norms["postnorm"][None],
            keys.ATTENTION: result.observables.attention[None],
            keys.ATTENTION_ACTION: result.action_rows,
            keys.POINT_CENTRES: np.stack([record.centres for record in result.encoded]),
            keys.POINT_PATCH: np.stack([record.patch for record in result.encoded]),
            keys.ROWS: result.encoded[0].rows[None],
            keys.ACTION_SAMPLES: result.samples,
            keys.ACTION_POLICY: result.action,
            keys.ACTION_EXECUTED: action,
            keys.STAGES_NS: result.times_ns,
            keys.WALL_NS: result.wall_ns,
        }
        for key, value in expected.items():
            np.testing.assert_array_equal(episode.read(key, index), value, err_msg=key)
        digests = episode.read(keys.ROWS_DIGEST, index)
        assert [row.tobytes() for row in digests] == [record.rows_digest for record in result.encoded]
    codecs = {key: episode.spec(key).codec for key in (keys.image("front"), keys.depth("front"), keys.ATTENTION)}
    assert codecs == {keys.image("front"): "zstd1", keys.depth("front"): "zstd1", keys.ATTENTION: None}
    assert episode.info.attributes["phases"] == ["reach"]
    assert episode.read(keys.PHASE).tolist() == [0, 0]


def test_recorded_draws_are_those_of_philox(small_trace):
    for info in Trace.open(small_trace).episodes:
        assert info.uid == episode_uid(info.task, info.seed)
        episode = Trace.open(small_trace).episode(info.id)
        for index in range(info.steps):
            draws = recorded_draws(episode, index)
            np.testing.assert_array_equal(draws.noise, action_noise(info.uid, index + 1, (2, 10)))
            np.testing.assert_array_equal(draws.fps_starts, fps_starts(info.uid, index + 1, 3, (1024, 512)))


def test_the_recorded_observation_is_what_the_policy_saw(tmp_path, small_policy, observations):
    record(tmp_path / "trace", small_policy, observations)
    episode = Trace.open(tmp_path / "trace").episode(EPISODE)
    cameras = observations[1].cameras
    found = recorded_observation(episode, 1, cameras)
    np.testing.assert_array_equal(found.images["front"], observations[1].images["front"])
    np.testing.assert_array_equal(found.points, observations[1].points)
    np.testing.assert_array_equal(found.state, observations[1].state)
    assert found.instruction == observations[1].instruction
    stored = episode.info.attributes["cameras"]
    assert {view: Camera.from_json(data) for view, data in stored.items()} == cameras


def test_stored_scores_are_those_that_a_live_pruner_decides_on(tmp_path, small_policy, observations):
    """Recorded without pruning, the default reduction's scores are bit by bit what tri-stage reads in its pass 0."""
    record(tmp_path / "trace", small_policy, observations)
    live = act(small_policy, make_config("tri_stage"), observations)
    episode = Trace.open(tmp_path / "trace").episode(EPISODE)
    for index, result in enumerate(live):
        stored = recorded_scores(episode, index, Reduction())
        seen = reduce(result.observables, Reduction(), decision_shape(result.layout))
        for name in ("norm_2d", "norm_3d", "attention_2d", "attention_3d", "ortho_3d", "points"):
            assert getattr(stored, name).tobytes() == getattr(seen, name).tobytes()
            assert getattr(stored, name).dtype in (np.float32, np.int32)
    with pytest.raises(TraceError, match="lacks 'scores/"):
        recorded_scores(episode, 0, Reduction(groups=("state",)))


AXES = {
    keys.STATE: ("state",),
    keys.image("front"): ("row", "column", "channel"),
    keys.POINTS: ("point", "xyz"),
    keys.TEXT_IDS: ("text_token",),
    keys.FPS_STARTS: ("pass", "stage"),
    keys.POINT_CENTRES: ("pass", "token", "xyz"),
    keys.POINT_PATCH: ("pass", "token"),
    keys.ROWS: ("pass", "token", "width"),
    keys.ROWS_DIGEST: ("pass", "byte"),
    keys.norms("prenorm"): ("pass", "token"),
    keys.ATTENTION: ("pass", "layer", "head", "query_group", "token"),
    keys.ATTENTION_ACTION: ("pass", "layer", "token"),
    keys.score(Reduction().digest, "ortho_3d"): ("patch",),
    keys.ACTION_NOISE: ("chunk", "action"),
    keys.ACTION_SAMPLES: ("pass", "chunk", "action"),
    keys.ACTION_POLICY: ("chunk", "action"),
    keys.ACTION_EXECUTED: ("chunk", "action"),
    keys.STAGES_NS: ("stage", "pass"),
    keys.WALL_NS: (),
    keys.PHASE: (),
}
UNITS = {
    keys.POINTS: "m",
    keys.POINT_CENTRES: "m",
    keys.depth("front"): "m",
    keys.time_ns("front"): "ns",
    keys.STAGES_NS: "ns",
    keys.WALL_NS: "ns",
    keys.ACTION_SAMPLES: "normalised",
}


def test_every_array_names_its_axes_and_units(small_trace):
    episode = Trace.open(small_trace).episode(EPISODE)
    for key in episode:
        spec = episode.spec(key)
        assert len(spec.axes) == len(spec.shape)
        assert spec.unit
    for key, axes in AXES.items():
        assert episode.spec(key).axes == axes, key
    for key, unit in UNITS.items():
        assert episode.spec(key).unit == unit, key
    for key in (keys.STATE, keys.ACTION_POLICY, keys.ACTION_EXECUTED):
        attributes = episode.spec(key).attributes
        assert tuple(attributes["names"]) == ("x", "y", "z", "r11", "r21", "r31", "r13", "r23", "r33", "gripper")
        assert tuple(attributes["units"]) == ("m", "m", "m", *["1"] * 6, "fraction")
    assert episode.spec(keys.STATE).attributes["frame"] == "base"
    assert episode.spec(keys.ATTENTION).attributes["query_groups"] == ["text", "state", "action"]
    assert episode.spec(keys.STAGES_NS).attributes["stages"] == list(STAGES)


def test_the_root_says_what_results_depend_on(small_trace, small_policy):
    attributes = Trace.open(small_trace).attributes
    assert attributes["kind"] == "full"
    assert attributes["policy"] == small_policy.identity.to_json()
    assert attributes["execution"] == {
        "reuse": {"kind": "none", "fps": "recorded", "kv": "reprefill"},
        "dtype": "float32",
        "threads": 1,
        "mode": "latency",
        "drop": "rows",
    }
    assert attributes["capture"]["name"] == "default"
    assert attributes["driver"] == "expert"
    assert attributes["shadow"] is True
    assert attributes["reduction"]["digest"] == Reduction().digest
    assert attributes["fingerprint"]["torch"] == torch.__version__


def test_a_pruned_run_is_called_so(tmp_path, small_policy, observations):
    record(tmp_path / "trace", small_policy, observations[:1], config=make_config("naive"))
    assert Trace.open(tmp_path / "trace").attributes["kind"] == "pruned_live"


def test_minimal_capture_leaves_the_rest_out(tmp_path, small_policy, observations):
    record(tmp_path / "trace", small_policy, observations, capture=CaptureSpec.minimal())
    episode = Trace.open(tmp_path / "trace").episode(EPISODE)
    assert keys.ATTENTION in episode
    assert keys.ROWS not in episode
    assert keys.ATTENTION_ACTION not in episode


def test_all_embeddings_on_request(tmp_path, small_policy, observations):
    results, _ = record(
        tmp_path / "trace", small_policy, observations[:1], capture=CaptureSpec(embeddings="all_passes")
    )
    rows = Trace.open(tmp_path / "trace").episode(EPISODE).read(keys.ROWS, 0)
    np.testing.assert_array_equal(rows, np.stack([record.rows for record in results[0].encoded]))


@pytest.mark.parametrize("taken", [0, 2])
def test_exactly_one_control_step_belongs_into_a_step(tmp_path, small_policy, observations, taken):
    path, controller = tmp_path / "trace", Controller(small_policy, make_config())
    act_once, calls = controller.act, [1, taken]
    controller.act = lambda observation: [act_once(observation) for _ in range(calls.pop(0))]
    with (
        Recorder(path, controller) as recording,
        pytest.raises(TraceError, match=f"{taken} control steps were taken inside one recorded step"),
    ):
        one_episode(recording, controller, observations, "x")
    assert Trace.open(path).episode("x").info.steps == 1  # the first step is not lost


def test_an_episode_without_a_step_is_refused(tmp_path, small_policy, observations):
    path, controller = tmp_path / "trace", Controller(small_policy, make_config())
    with (
        Recorder(path, controller) as recording,
        pytest.raises(TraceError, match="has no step"),
        recording.episode("close_box", observations[0].instruction),
    ):
        pass
    assert ids(path) == []


def test_another_instruction_than_the_episodes_is_refused(tmp_path, small_policy, observations):
    """A replay reads the text from the episode: were it another one, other tokens would be replayed."""
    path, controller = tmp_path / "trace", Controller(small_policy, make_config())
    other = replace(observations[1], instruction="close the laptop")
    with Recorder(path, controller) as recording, pytest.raises(TraceError, match="'close the laptop'"):
        one_episode(recording, controller, [observations[0], other], "x")
    assert Trace.open(path).episode("x").info.steps == 1


def test_cameras_are_those_of_the_observations(tmp_path, small_policy, observations):
    """A replay projects the points through the episode's cameras: they must be those that the policy used."""
    path, controller = tmp_path / "trace", Controller(small_policy, make_config())
    front = observations[0].cameras["front"]
    shifted = {"front": replace(front, cx=front.cx + 1)}
    with Recorder(path, controller) as recording:
        one_episode(recording, controller, observations, "fixed")
        with pytest.raises(TraceError, match="camera models"):
            one_episode(recording, controller, [observations[0], replace(observations[1], cameras=shifted)], "moving")
        with pytest.raises(TraceError, match="camera models"):
            one_episode(recording, controller, observations, "another", cameras=shifted)
    assert [(info.id, info.steps) for info in Trace.open(path).episodes] == [("fixed", 2), ("moving", 1)]
    stored = Trace.open(path).episode("fixed").info.attributes["cameras"]
    assert {view: Camera.from_json(data) for view, data in stored.items()} == {"front": front}


def test_a_second_episode_inside_one_is_refused(tmp_path, small_policy, observations):
    controller = Controller(small_policy, make_config())
    instruction = observations[0].instruction
    with (
        Recorder(tmp_path / "trace", controller) as recorder,
        recorder.episode("close_box", instruction, seed=1) as outer,
    ):
        with pytest.raises(TraceError, match="still being recorded"), recorder.episode("close_box", instruction):
            pass
        with outer.step(observations[0]) as step:
            step.action = controller.act(observations[0])
    assert [info.id for info in Trace.open(tmp_path / "trace").episodes] == ["close_box-1"]


def test_a_recorder_that_is_not_open_says_so(tmp_path, small_policy):
    recorder = Recorder(tmp_path / "trace", Controller(small_policy, make_config()))
    with pytest.raises(TraceError, match="not open"), recorder.episode("close_box", "close the box"):
        pass
    assert not (tmp_path / "trace").exists()


def test_without_a_uid_one_is_drawn_and_kept(tmp_path, small_policy, observations):
    controller = Controller(small_policy, make_config())
    with Recorder(tmp_path / "trace", controller) as recording:
        for _ in range(2):
            with recording.episode("close_box", observations[0].instruction) as episode, episode.step(observations[0]):
                controller.act(observations[0])
    first, second = Trace.open(tmp_path / "trace").episodes
    assert first.uid != second.uid
    assert first.id == f"close_box-{first.uid:016x}"
    noise = Trace.open(tmp_path / "trace").episode(first.id).read(keys.ACTION_NOISE, 0)
    np.testing.assert_array_equal(noise, action_noise(first.uid, 1, (2, 10)))
