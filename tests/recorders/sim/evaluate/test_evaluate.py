"""Closed loop: pairing, controls, recording, and what several calls and processes share."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from recorders.sim import Environment, episode_uid
from recorders.sim.evaluate import Case, control_case, evaluate, unpruned
from recorders.sim.evaluate import run as running
from recorders.sim.evaluate.controls import swap_colours
from recorders.sim.evaluate.episode import run_episode
from recorders.sim.evaluate.known import known_episodes
from tests.small import make_config, make_policy
from tracekit.config import load_config
from tracekit.engine import Controller
from tracekit.errors import ConfigError, PolicyError, TraceError
from tracekit.model import save_policy
from tracekit.store import Trace

TASK, SEED = "close_box", 3


pytestmark = pytest.mark.usefixtures("short_episodes")


@pytest.mark.parametrize(
    ("control", "image", "point"), [("no_visual", 1.0, 1.0), ("no_image", 1.0, 0.0), ("no_points", 0.0, 1.0)]
)
def test_controls_drop_whole_modalities_in_every_pass(control, image, point):
    result = evaluate([control_case(control, "small", None)], [TASK], 1, SEED)
    (outcome,) = result.cases[0].outcomes
    assert (outcome.pruned_image, outcome.pruned_point) == (image, point)


def test_dropping_the_image_means_that_pixels_change_nothing(small_policy):
    dropped = control_case("no_image", "small", None).with_threads(1)
    for config, same in ((dropped.configuration, True), (unpruned(), False)):
        observation = Environment(TASK).reset(SEED)
        black = replace(observation, images={"front": np.zeros_like(observation.images["front"])})
        actions = []
        for seen in (observation, black):
            controller = Controller(small_policy, config)
            controller.reset(5)
            controller.step(seen)
            actions.append(controller.last.unclipped)
        assert np.array_equal(*actions) == same


def test_cases_meet_the_same_scenes_and_are_paired_with_the_first(case):
    cases = [case(), case("again"), Case("naive", make_config("naive", "prefix_kv", rate=0.5, name="naive"), "small")]
    result = evaluate(cases, [TASK, "close_laptop"], 1, SEED)
    first, again, naive = result.cases
    assert first.paired is None
    assert (again.paired.gained, again.paired.lost) == (0, 0)
    assert [o.steps for o in first.outcomes] == [o.steps for o in again.outcomes]
    assert [(o.pruned_image, o.pruned_point) for o in naive.outcomes] == [(0.5, 0.5)] * 2
    data = result.to_json()
    assert [entry["name"] for entry in data["configurations"]] == ["unpruned", "again", "naive"]
    assert set(data["configurations"][0]["by_task"]) == {TASK, "close_laptop"}
    won = data["configurations"][0]["by_seed"]
    assert {task: sum(seeds.values()) for task, seeds in won.items()} == {
        task: one["successes"] for task, one in data["configurations"][0]["by_task"].items()
    }
    assert all(set(seeds) == {str(data["seeds"][0] + i) for i in range(len(seeds))} for seeds in won.values())
    assert data["configurations"][0]["episodes"] == 2
    assert {one["paired"] for one in data["configurations"][0]["by_task"].values()} == {None}
    assert all(one["paired"]["difference"] == 0 for one in data["configurations"][1]["by_task"].values())
    json.dumps(data, allow_nan=False)
    assert result.table().row_count == 3
    assert result.task_table().row_count == 6


def test_recorded_episodes_are_those_that_were_run(tmp_path, case):
    path = tmp_path / "trace.zarr"
    result = evaluate([case()], [TASK], 1, SEED, record=path)
    trace = Trace.open(path)
    (info,) = trace.episodes
    assert (info.id, info.seed, info.success, info.steps) == (f"{TASK}-{SEED}", SEED, False, 2)
    assert trace.attributes["driver"] == "policy"
    recorded = trace.episode(info.id)
    assert np.array_equal(recorded.read("action/executed", 0)[0], recorded.read("action/policy", 0)[0])
    assert result.cases[0].outcomes[0].steps == 2


def test_a_recording_runs_what_is_known_and_writes_it_once(tmp_path, case):
    out = tmp_path / "episodes.jsonl"
    evaluate([case()], [TASK], 1, SEED, out=out)
    before = out.read_bytes()
    evaluate([case()], [TASK], 1, SEED, out=out, record=tmp_path / "trace.zarr")
    assert len(Trace.open(tmp_path / "trace.zarr").episodes) == 1
    assert out.read_bytes() == before
    out.write_text("x,y\n")
    with pytest.raises(TraceError, match="line 1 is no episode"):
        evaluate([case()], [TASK], 1, SEED + 1, out=out, record=tmp_path / "another.zarr")
    assert out.read_text() == "x,y\n"
    assert not (tmp_path / "another.zarr").exists()


def test_the_wrong_instruction_names_the_twin(small_policy):
    environment = Environment(TASK)
    environment.reset(SEED)
    asked, other = environment.scenario.colours
    told = []

    class Listening(Controller):
        def step(self, observation, *arguments):
            told.append(observation.instruction)
            return super().step(observation, *arguments)

    run_episode(Listening(small_policy, unpruned()), environment, SEED, wrong_instruction=True)
    assert set(told) == {environment.instruction.replace(asked, other)}
    assert asked not in told[0]
    with pytest.raises(ConfigError, match="does not name the colour"):
        swap_colours("close the box", ("red", "blue"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episodes": 0}, "--episodes 0: give 1 to 100000"),
        ({"episodes": 100_001}, "--episodes 100001: give 1 to 100000"),
        ({"seed": -1}, "--seed -1: give a non-negative integer"),
        ({"seed": 1_000_000}, "are for training"),
        ({"processes": 0}, "--processes 0"),
        ({"rows": 2}, "unpruned: 2 rows have this name; name each control once"),
        ({"tasks": ["close_boks"]}, "close_box"),
        ({"tasks": [TASK, TASK]}, "named twice"),
    ],
    ids=str,
)
def test_unusable_requests_are_refused_before_anything_is_written(changes, message, case, tmp_path):
    asked = {"episodes": 1, "seed": 0, "tasks": [TASK], "rows": 1} | changes
    with pytest.raises(ConfigError, match=message):
        evaluate([case()] * asked.pop("rows"), **asked, out=tmp_path / "new" / "episodes.jsonl")
    assert not list(tmp_path.iterdir())


def test_an_episode_that_a_trace_has_already_is_refused_before_the_first_one(tmp_path, case, small_trace, monkeypatch):
    monkeypatch.setattr(running, "run_episode", lambda *_, **__: pytest.fail("an episode was run"))
    with pytest.raises(TraceError, match="'close_laptop-3' is already there"):
        evaluate([case()], [TASK, "close_laptop"], 3, 1, record=small_trace)


def test_a_warm_up_changes_nothing_and_counts_nowhere(case, small_policy, monkeypatch):
    moved = {True: [], False: []}
    real = Environment.step

    def watched(self, action):
        moved[warm].append(np.array(action))
        return real(self, action)

    monkeypatch.setattr(Environment, "step", watched)
    rows = [case(), Case("pruned", make_config("tri_stage", "prefix_kv", name="pruned"), "small")]
    rows.append(Case("skipping", make_config("naive", "skip_frame", name="skipping"), "small"))
    warm = True
    result = evaluate(rows, [TASK], 2, SEED)
    warm = False
    for seed in (SEED, SEED + 1):
        for row, found in zip(rows, result.cases, strict=True):
            cold = run_episode(Controller(small_policy, row.configuration), Environment(TASK), seed)
            met = found.outcomes[seed - SEED]
            assert (cold.steps, cold.success) == (met.steps, met.success)
            assert (cold.pruned_image, cold.pruned_point) == (met.pruned_image, met.pruned_point)
    assert len(moved[True]) == len(moved[False]) == 12
    assert np.array_equal(moved[True], moved[False])


def test_weights_are_read_anew_by_every_call_and_none_others_are_taken(tmp_path, case, small_policy):
    row = case(policy=str(tmp_path / "policy"))
    save_policy(small_policy, tmp_path / "policy")
    first = evaluate([row], [TASK], 1, SEED)
    shutil.rmtree(tmp_path / "policy")
    save_policy(make_policy(seed=2), tmp_path / "policy")
    second = evaluate([row], [TASK], 1, SEED)
    found, there = (result.cases[0].identity.weights_digest for result in (first, second))
    assert found == small_policy.identity.weights_digest
    assert there == make_policy(seed=2).identity.weights_digest
    with pytest.raises(PolicyError, match="was replaced while it was evaluated"):
        running._Episodes()(running._Job(row, TASK, SEED, small_policy.identity))


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path, case, small_policy, monkeypatch):
    monkeypatch.undo()  # other processes know of no shorter episodes
    save_policy(small_policy, tmp_path / "policy")
    row = case(policy=str(tmp_path / "policy"))
    results = [
        evaluate([row], [TASK], 2, SEED, processes=processes, out=tmp_path / f"{processes}.jsonl")
        for processes in (1, 2)
    ]
    one, two = ([replace(o, step_ms=()) for o in result.cases[0].outcomes] for result in results)
    assert one == two
    keys = [{json.loads(line)["key"] for line in path.read_text().splitlines()} for path in tmp_path.glob("*.jsonl")]
    assert keys[0] == keys[1]
    assert len(keys[0]) == 2


def test_labels_stand_beside_the_name(case):
    row = case("cut", configuration=make_config("naive", "skip_frame", name="cut"))
    result = evaluate([row], [TASK], 1, SEED)
    assert list(result.table().columns[0].cells) == ["cut (reuse = skip_frame)"]
    assert result.to_json()["configurations"][0]["labels"] == ["reuse = skip_frame"]


def test_controls_that_cannot_be_had_are_refused():
    with pytest.raises(ConfigError, match="--control sleepy: choose one of blind"):
        control_case("sleepy", "small", None)
    with pytest.raises(ConfigError, match="no blind policy at hand"):
        control_case("blind", "small", None)
    assert control_case("blind", "small", "elsewhere").policy == "elsewhere"


def test_what_a_later_row_cannot_run_is_said_before_the_first_episode(tmp_path, case):
    out, unlike = tmp_path / "episodes.jsonl", Case("other", load_config("vla-pruner"), "small")
    with pytest.raises(ConfigError):
        evaluate([case(), unlike], [TASK], 1, SEED, out=out)
    save_policy(make_policy(points=512), tmp_path / "policy")
    with pytest.raises(PolicyError, match="point cloud has shape"):
        evaluate([case(), Case("other", unpruned(), str(tmp_path / "policy"))], [TASK], 1, SEED, out=out)
    assert not out.exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"success": 2},
        {"success": None},
        {"success": "no"},
        {"steps": "a"},
        {"steps": 0, "step_ms": []},
        {"step_ms": []},
        {"step_ms": [None, None]},
        {"step_ms": ["a", "b"]},
        {"step_ms": [1.0, float("nan")]},
        {"step_ms": [1.0, -1.0]},
        {"step_ms": [1.0, 10**400]},
        {"pruned_image": None},
        {"pruned_image": 7.0},
        {"pruned_point": float("inf")},
    ],
)
def test_an_episode_with_impossible_values_is_named_and_nothing_is_run(tmp_path, case, wrong):
    out = tmp_path / "episodes.jsonl"
    whole = {"success": True, "steps": 2, "step_ms": [1.0, 2.0], "pruned_image": 0.0, "pruned_point": 0.0}
    for entry, bad in ((whole, False), (whole | wrong, True)):
        out.write_text(json.dumps({"key": "a"} | entry) + "\n")
        if not bad:
            assert set(known_episodes(out)) == {"a"}
            continue
        with pytest.raises(TraceError, match="line 1 is no episode"):
            evaluate([case()], [TASK], 1, SEED, out=out)


def test_results_go_on_in_a_regular_file_alone(tmp_path, case):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for out in (pipe, tmp_path):
        with pytest.raises(TraceError, match="no regular file"):
            evaluate([case()], [TASK], 1, SEED, out=out)


def test_episodes_are_computed_with_one_thread_and_drawn_by_their_uid(monkeypatch, case):
    threads, uids, step, reset = set(), set(), Controller.step, Controller.reset

    def watched_step(self, observation):
        threads.add(self.config.execution.threads)
        return step(self, observation)

    def watched_reset(self, uid):
        uids.add(uid)
        reset(self, uid)

    monkeypatch.setattr(Controller, "step", watched_step)
    monkeypatch.setattr(Controller, "reset", watched_reset)
    evaluate([case().with_threads(2)], [TASK], 2, SEED)
    assert threads == {1}
    assert uids >= {episode_uid(TASK, SEED), episode_uid(TASK, SEED + 1)}
