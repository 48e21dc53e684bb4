"""Closed loop: pairing, controls, resumption, recording, and the statistics that are printed."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recorders.sim import Environment
from recorders.sim.evaluate import Case, control_case, evaluate, unpruned
from recorders.sim.evaluate import run as running
from recorders.sim.evaluate.controls import swap_colours
from recorders.sim.evaluate.episode import run_episode
from recorders.sim.evaluate.statistics import paired_difference, wilson_interval
from tests.small import make_config
from tracekit.engine import Controller
from tracekit.errors import ConfigError, TraceError
from tracekit.store import Trace

TASK, SEED = "close_box", 3


@pytest.fixture(autouse=True)
def short_episodes(monkeypatch):
    """Two key poses: enough for a mask to follow another."""
    running._environment.cache_clear()
    monkeypatch.setattr("recorders.sim.environment.MAX_STEPS", 2)
    yield
    running._environment.cache_clear()


def case(name="unpruned", **changes):
    return replace(Case(name, replace(unpruned(), name=name), "small"), **changes)


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


def test_cases_meet_the_same_scenes_and_are_paired_with_the_first():
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
    json.dumps(data, allow_nan=False)
    assert result.table().row_count == 3


def test_a_stopped_evaluation_goes_on_and_repeats_nothing(tmp_path, monkeypatch):
    out = tmp_path / "episodes.jsonl"
    evaluate([case()], [TASK], 1, SEED, out=out)
    with out.open("a") as file:
        file.write('{"key": "cut o')
    ran = []
    real = running._run
    monkeypatch.setattr(running, "_run", lambda job: ran.append(job[2]) or real(job))
    whole = evaluate([case()], [TASK], 2, SEED, out=out)
    assert ran == [SEED + 1]
    assert len(whole.cases[0].outcomes) == 2
    assert len(out.read_text().splitlines()) == 2
    evaluate([case("another name")], [TASK], 2, SEED, out=out)
    assert ran == [SEED + 1]
    evaluate([case("naive", configuration=make_config("naive", "prefix_kv"))], [TASK], 1, SEED, out=out)
    assert ran == [SEED + 1, SEED]


def test_a_file_that_holds_something_else_is_refused(tmp_path):
    out = tmp_path / "episodes.jsonl"
    out.write_text("hello\n" * 2)
    with pytest.raises(TraceError, match="line 1 is no episode"):
        evaluate([case()], [TASK], 1, SEED, out=out)
    assert out.read_text() == "hello\n" * 2


def test_recorded_episodes_are_those_that_were_run(tmp_path):
    path = tmp_path / "trace.zarr"
    result = evaluate([case()], [TASK], 1, SEED, record=path)
    trace = Trace.open(path)
    (info,) = trace.episodes
    assert (info.id, info.seed, info.success, info.steps) == (f"{TASK}-{SEED}", SEED, False, 2)
    assert trace.attributes["driver"] == "policy"
    recorded = trace.episode(info.id)
    assert np.array_equal(recorded.read("action/executed", 0)[0], recorded.read("action/policy", 0)[0])
    assert result.cases[0].outcomes[0].steps == 2


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
    ("arguments", "message"),
    [
        (([case()], [TASK], 0, 0), "--episodes 0"),
        (([case()], [TASK], 1, 1_000_000), "are for training"),
        (([case(), case()], [TASK], 1, 0), "share a name"),
        (([case()], ["close_boks"], 1, 0), "close_box"),
        (([case()], [TASK, TASK], 1, 0), "named twice"),
    ],
)
def test_unusable_requests_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(*arguments)


def test_controls_that_cannot_be_had_are_refused():
    with pytest.raises(ConfigError, match="--control sleepy: choose one of blind"):
        control_case("sleepy", "small", None)
    with pytest.raises(ConfigError, match="no blind policy at hand"):
        control_case("blind", "small", None)
    assert control_case("blind", "small", "elsewhere").policy == "elsewhere"


def test_wilson_interval_of_known_rates():
    # z = 1.959964: centre (p + z²/2n)/(1 + z²/n), reach z/(1 + z²/n)·√(p(1 - p)/n + z²/4n²)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(15, 20) == pytest.approx((0.5313, 0.8881), abs=1e-4)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_a_paired_difference_is_antisymmetric_and_inside_its_interval(pairs):
    here, there = zip(*pairs, strict=True)
    forward, backward = paired_difference(here, there), paired_difference(there, here)
    assert forward.rate == pytest.approx(np.mean(here) - np.mean(there))
    assert forward.interval == pytest.approx((-backward.interval[1], -backward.interval[0]))
    low, high = forward.interval
    shrunk = forward.rate * len(pairs) / (len(pairs) + 2)
    assert -1 <= low <= shrunk <= high <= 1
    assert high - low > 0


def test_pairing_narrows_the_interval():
    here = [True] * 30 + [False] * 20
    agreeing = paired_difference(here, [True] * 25 + [False] * 25)
    crossing = paired_difference(here, [False] * 25 + [True] * 25)
    assert agreeing.rate == crossing.rate
    assert np.ptp(agreeing.interval) < np.ptp(crossing.interval)


def test_episodes_that_do_not_pair_are_refused():
    with pytest.raises(ConfigError, match="do not pair"):
        paired_difference([True], [True, False])
