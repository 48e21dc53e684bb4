"""The verbs `train`, `evaluate` and `record sim --drive` from the command line's side."""

import json

import pytest
from typer.testing import CliRunner

from tests import small  # noqa: F401  # registers the policy `small`
from tracekit.cli.app import app
from tracekit.errors import ConfigError, TracekitError
from tracekit.store import Trace


@pytest.fixture(autouse=True)
def short_episodes(monkeypatch):
    monkeypatch.setattr("recorders.sim.environment.MAX_STEPS", 1)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_evaluate_prints_one_object_with_stable_keys():
    options = ("--episodes", 1, "--policy", "small", "--control", "no_image", "--json")
    done = run("evaluate", "--task", "close_box", *options)
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert set(data) == {"tasks", "seeds", "scenes", "policy_trained", "no_blind_row", "configurations"}
    rows = data["configurations"]
    assert [row["name"] for row in rows] == ["unpruned", "no_image", "blind"]
    for row in rows:
        assert {"success_rate", "interval", "steps", "step_ms", "pruned", "paired"} <= set(row)
    assert rows[1]["pruned"] == {"image": 1.0, "point": 0.0}


def test_evaluate_runs_the_configurations_of_a_grid(tmp_path):
    grid = tmp_path / "grid.toml"
    grid.write_text(
        'name = "two"\nkind = "cartesian"\nbase = "naive-50"\n[axes]\npruner.rate = [0.25, 0.75]\n', encoding="utf-8"
    )
    done = run("evaluate", "--task", "close_box", "--episodes", 1, "--policy", "small", "--grid", grid, "--json")
    assert done.exit_code == 0, done.output
    rows = {row["name"]: row["pruned"]["image"] for row in json.loads(done.stdout)["configurations"]}
    assert rows == {
        "rate=0.25": pytest.approx(0.25, abs=0.01),
        "rate=0.75": pytest.approx(0.75, abs=0.01),
        "blind": 1.0,
    }


def test_the_packaged_blind_policy_has_no_row_for_tasks_it_never_saw():
    done = run("evaluate", "--task", "close_box_narrow", "--episodes", 1, "--policy", "small", "--json")
    data = json.loads(done.stdout)
    assert [row["name"] for row in data["configurations"]] == ["unpruned"]
    assert "train one with `tracekit train --blind`" in data["no_blind_row"]


def test_what_is_recorded_has_no_blind_row(tmp_path):
    options = ("--episodes", 1, "--policy", "small", "--record", tmp_path / "trace.zarr")
    done = run("evaluate", "--task", "close_box", *options, "--blind", tmp_path)
    assert isinstance(done.exception, ConfigError)
    assert "--blind, --record" in str(done.exception)
    assert not list(tmp_path.iterdir())
    assert run("evaluate", "--task", "close_box", *options).exit_code == 0


def test_evaluate_says_that_untrained_weights_say_nothing():
    done = run("evaluate", "--task", "close_box", "--episodes", 1, "--policy", "small")
    assert "random weights" in done.stdout


def test_training_no_task_at_all_is_not_training_all_of_them(tmp_path):
    done = run("train", "--out", tmp_path / "run", "--data", tmp_path / "data", "--tasks", "")
    assert isinstance(done.exception, ConfigError)
    assert "--tasks ''" in str(done.exception)


def test_the_policy_can_drive_a_recording(tmp_path):
    out = tmp_path / "trace.zarr"
    done = run("record", "sim", "--task", "close_box", "--out", out, "--policy", "small", "--drive", "policy", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["driver"] == "policy"
    trace = Trace.open(out)
    assert trace.attributes["driver"] == "policy"
    assert trace.attributes["shadow"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate", "--task", "close_box", "--seed", 1_000_000), "are for training"),
        (("evaluate", "--task", "close_box", "--control", "deaf"), "choose one of"),
        (("train", "--out", "run", "--data", "data", "--steps", 0), "--steps 0"),
        (("train", "--out", "run", "--data", "data", "--tasks", "close_boks"), "close_box"),
        (("record", "sim", "--task", "close_box", "--out", "t.zarr", "--drive", "nobody"), "policy or expert"),
    ],
)
def test_unusable_input_is_refused_before_anything_is_written(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert isinstance(done.exception, TracekitError)
    assert message in str(done.exception)
    assert not list(tmp_path.iterdir())
