"""Live = replay: an episode that was pruned while it was recorded, replayed under the configuration that pruned it."""

from dataclasses import replace

import numpy as np
import pytest

from recorders import Recorder
from recorders.sim.evaluate import Case, evaluate
from replay import Replay, replay_decisions
from tests.small import make_policy
from tracekit import keys
from tracekit.config import Configuration
from tracekit.engine import Controller
from tracekit.errors import TraceError
from tracekit.policy import register_policy
from tracekit.pruned_records import recorded_kept
from tracekit.pruning import decision_digest
from tracekit.store import Trace

SEED = 3
STEPS = 4
PINNED = {"kind": "prefix_kv", "fps": "pinned"}

register_policy("small-4", lambda precision: make_policy(dtype=precision.dtype, layers=4, name="small-4"))


def make(kind="tri_stage", *, observe=None, reuse=None, dtype="float32", **pruner):
    pruner = {"background_rate": 0.5, **pruner} if kind == "tri_stage" else pruner
    table = {"name": "live", "pruner": {"kind": kind, **pruner}, "execution": {"threads": 1, "dtype": dtype}}
    table |= {} if reuse is None else {"reuse": reuse}
    table |= {} if observe is None else {"observe": observe}
    return Configuration.from_table(table, "make")


LAGGED = {"mode": "lagged", "refresh_every": 3}


@pytest.fixture(scope="module", autouse=True)
def short_episodes():
    patch = pytest.MonkeyPatch()
    patch.setattr("recorders.sim.environment.MAX_STEPS", STEPS)
    yield
    patch.undo()


def record(path, config, tasks=("close_box",), policy="small"):
    evaluate([Case(config.name, config, policy)], list(tasks), 1, SEED, record=path)
    return path


def replayed(path, *configs, **options):
    result = Replay(path, **options).run(*configs)
    return result.to_json()["configurations"][0], result


@pytest.fixture(scope="module")
def lagged_trace(tmp_path_factory):
    return record(tmp_path_factory.mktemp("lagged") / "t", make(observe=LAGGED, reuse=PINNED))


def tasks():
    from recorders.sim.tasks import TASKS as known

    return tuple(known)


@pytest.mark.slow
@pytest.mark.parametrize("observe", [None, LAGGED], ids=["current", "lagged"])
def test_every_task_replays_to_the_bit(tmp_path, observe):
    """Twice the pruner's memory at work: masks of step t depend on everything before it."""
    path = record(tmp_path / "t", make(observe=observe), tasks())
    row, result = replayed(path)
    assert row["matches_recording"] == {"mask_bits": 1.0, "actions_bitwise": True}
    assert row["encode_matches"] is True
    assert row["name"] == "live"
    assert len(result.episodes["live"]) == len(tasks())
    assert any(not step.result.kept.all() for step in result.episodes["live"][0].steps)
    assert row["deviation"]["unclipped_relative"] == 0


@pytest.mark.parametrize(
    "options",
    [
        {"reuse": PINNED},
        {"reuse": PINNED, "dtype": "bfloat16"},
        {"reuse": {**PINNED, "kv": "drop"}},
        {"reuse": {"kind": "mask"}, "observe": {"refresh_every": 2}},
        {"reuse": {"kind": "mask"}, "observe": LAGGED},
        {"kind": "naive", "rate": 0.6},
        {"kind": "sp_vla", "observe": LAGGED, "reuse": PINNED},
        {"kind": "tri_stage", "reuse": PINNED, "observe": LAGGED, "reduction": {"feature": "postnorm"}},
    ],
    ids=str,
)
def test_every_way_of_pruning_replays_to_the_bit(tmp_path, options):
    path = record(tmp_path / "t", make(**options))
    row, result = replayed(path)
    assert row["matches_recording"] == {"mask_bits": 1.0, "actions_bitwise": True}
    decided = replay_decisions(path, make(**options))["close_box-3"]
    assert decision_digest(decided) == row["decisions_digest"]
    assert not all(step.result.kept.all() for step in result.episodes["live"][0].steps)


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "fastv", "layer": 1, "reuse": PINNED},
        {"kind": "fastv", "layer": 1, "query": "action", "reuse": {"fps": "pinned"}},
        {"kind": "vla_pruner", "layer": 1, "action_layer": 2, "window": 2, "reuse": {"fps": "pinned"}},
    ],
    ids=str,
)
def test_pruning_inside_the_network_replays_to_the_bit(tmp_path, options):
    path = record(tmp_path / "t", make(**options), policy="small-4")
    row, _ = replayed(path)
    assert row["matches_recording"] == {"mask_bits": 1.0, "actions_bitwise": True}
    decided = replay_decisions(path, make(**options))["close_box-3"]
    assert decision_digest(decided) == row["decisions_digest"]


def test_the_comparison_can_fail(lagged_trace):
    """One mask bit or one bit of an action in the recording, and it shows."""
    _, result = replayed(lagged_trace)
    step = result.episodes["live"][0].steps[1]
    assert step.mask_bits == (step.result.kept.size, step.result.kept.size)
    kept = step.recorded.kept.copy()
    kept[0, 0] ^= True
    assert replace(step, recorded=replace(step.recorded, kept=kept)).mask_bits[0] == kept.size - 1
    action = np.nextafter(step.recorded.unclipped, np.float32(9))
    assert replace(step, recorded=replace(step.recorded, unclipped=action)).action_matches is False


def test_masks_observed_masks_and_memory_are_stored(lagged_trace):
    trace = Trace.open(lagged_trace)
    assert trace.attributes["kind"] == "pruned_live"
    assert Configuration.from_table(trace.attributes["configuration"], "t") == make(observe=LAGGED, reuse=PINNED)
    episode = trace.episode("close_box-3")
    _, result = replayed(lagged_trace)
    for index, step in enumerate(result.episodes["live"][0].steps):
        np.testing.assert_array_equal(recorded_kept(episode, index), step.result.kept)
        observed = episode.read(keys.OBSERVED, index)
        assert bool(observed.all()) == (index in {0, 3})
        state = step.result.memory.state.to_arrays()
        for name, array in state.items():
            np.testing.assert_array_equal(episode.read(keys.pruner_state(name), index), array)
        if step.result.decision.s1 is not None:
            np.testing.assert_array_equal(episode.read(keys.decision("s1"), index), step.result.decision.s1)
            margin = step.result.decision.margins["tau_2d"]
            np.testing.assert_array_equal(episode.read(keys.margin("tau_2d"), index), margin)


def test_an_episode_resumes_from_the_recorded_memory(tmp_path):
    path = record(tmp_path / "t", make(reuse=PINNED))
    _, result = replayed(path)
    episode = Trace.open(path).episode("close_box-3")
    state = make().method.initial_state(make().pruner, replace_shape(result))
    arrays = {name: episode.read(keys.pruner_state(name), 1) for name in state.to_arrays()}
    restored = type(state).from_arrays(arrays)
    steps = result.episodes["live"][0].steps
    controller = Controller(Replay(path)._policy(make(reuse=PINNED)), make(reuse=PINNED))
    controller.reset(episode.info.uid, steps=2, memory=restored)
    again = controller.step(steps[2].recorded.observation, steps[2].recorded.draws)
    np.testing.assert_array_equal(again.samples, steps[2].result.samples)
    np.testing.assert_array_equal(again.kept, steps[2].result.kept)


def replace_shape(result):
    from tracekit.engine import decision_shape

    return decision_shape(result.episodes["live"][0].steps[0].result.layout)


def test_other_configurations_replay_forward_and_not_from_what_is_stored(lagged_trace):
    other = replace(make(observe=LAGGED, reuse=PINNED, tau_2d=0.05), name="other")
    row, _ = replayed(lagged_trace, other)
    assert row["matches_recording"] is None
    assert row["encode_matches"] is True
    unpinned, _ = replayed(lagged_trace, replace(make("naive"), name="unpinned"))
    assert unpinned["encode_matches"] is True  # pass 0, the one that was encoded
    with pytest.raises(TraceError, match="was pruned by 'live' while it was recorded") as caught:
        replay_decisions(lagged_trace, other)
    assert "\n" not in str(caught.value)
    with pytest.raises(TraceError, match=r"needs an unpruned recording, use .own."):
        replayed(lagged_trace, make(observe={**LAGGED, "feedback": "recorded"}))


def test_a_trace_of_two_configurations_is_refused(lagged_trace):
    with pytest.raises(TraceError, match="configuration"):
        record(lagged_trace, make(observe=LAGGED, reuse=PINNED, tau_2d=0.05), tasks=("close_laptop",))


def test_what_is_no_latency_run_is_not_recorded(tmp_path, small_policy):
    with pytest.raises(TraceError, match="runs no forward pass"):
        Recorder(tmp_path / "t", Controller(small_policy, make(reuse={"kind": "skip_frame"})))
    together = make()
    together = replace(together, execution=replace(together.execution, mode="throughput"))
    with pytest.raises(TraceError, match="steps of several replays together"):
        Recorder(tmp_path / "t", Controller(small_policy, together))
    assert not (tmp_path / "t").exists()
