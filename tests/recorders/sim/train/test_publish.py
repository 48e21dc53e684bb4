"""What the package ships is replaced by better weights only, and its card speaks of just those weights."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from recorders.sim.train import train
from recorders.sim.train.publish import publish
from tests.recorders.sim.train.test_run import tiny
from tracekit.errors import ConfigError, PolicyError, TraceError
from tracekit.model import (
    load_policy_directory,
    save_policy,
)


@pytest.fixture(scope="module")
def trained(demonstrations, plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recorders.sim.train.plan._HELD_OUT", 1)
        patch.setattr("recorders.sim.train.run._HELD_OUT_FRAMES", 2)
        train(folder, demonstrations, replace(plan, steps=1), policy=tiny(3, trained=True))
    return folder


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def read(folder):
    return json.loads((folder / "training.json").read_text())


def change(run, **values):
    """Other papers."""
    (run / "training.json").write_text(json.dumps(read(run) | values))


def train_on(run, **values):
    """Other weights, with their papers."""
    policy = tiny(4, trained=True)
    shutil.rmtree(run / "policy")
    save_policy(policy, run / "policy")
    change(run, weights_digest=policy.identity.weights_digest, **values)


def everything(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_only_a_lower_held_out_loss_replaces_what_is_there(run, tmp_path):
    destination = tmp_path / "shipped"
    assert publish(run, destination)
    policy = load_policy_directory(destination)
    assert policy.identity.weights_digest in (destination / "MODEL_CARD.md").read_text()
    assert (destination / "curve.jsonl").read_bytes() == (run / "curve.jsonl").read_bytes()
    assert read(destination) == read(run)
    loss = read(run)["held_out"]["noise"]
    before = everything(destination)
    train_on(run, held_out={"noise": loss + 0.1})
    assert not publish(run, destination)
    assert everything(destination) == before
    change(run, held_out={"noise": loss - 0.1})
    assert publish(run, destination)
    assert load_policy_directory(destination).identity.weights_digest == read(run)["weights_digest"]
    assert not list(tmp_path.glob(".shipped*"))


def test_newer_scenes_replace_older_ones_whatever_the_losses(run, tmp_path):
    destination = tmp_path / "shipped"
    assert publish(run, destination)
    training = read(run)
    train_on(run, held_out={"noise": training["held_out"]["noise"] + 0.1})
    assert not publish(run, destination)
    change(run, scene_version=training["scene_version"] - 1, held_out={"noise": 0.0})
    assert not publish(run, destination)
    change(run, scene_version=training["scene_version"] + 1, held_out={"noise": 9.0})
    assert publish(run, destination)
    assert f"| scenes | version {training['scene_version'] + 1};" in (destination / "MODEL_CARD.md").read_text()


def test_what_a_link_leads_to_is_replaced_and_the_link_stays(run, tmp_path):
    assert publish(run, tmp_path / "shipped")
    (tmp_path / "link").symlink_to(tmp_path / "shipped")
    train_on(run, held_out={"noise": 0.0})
    assert publish(run, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert read(tmp_path / "shipped") == read(run)
    assert not list(tmp_path.glob(".*"))


def test_the_card_takes_an_evaluation_of_the_same_weights_alone(run, tmp_path):
    destination, evaluation = tmp_path / "shipped", tmp_path / "evaluation.json"
    rate, none = ({"success_rate": p, "interval": list(ends)} for p, ends in ((0.5, (0.24, 0.76)), (0.0, (0.0, 0.28))))
    results = {
        "tasks": ["close_box"],
        "seeds": [0, 9],
        "scenes": {"scene": str(read(run)["scene_version"])},
        "configurations": [
            {"name": "unpruned", "policy": {"name": "small", "weights_digest": read(run)["weights_digest"]}, **rate}
            | {"by_task": {"close_box": rate}},
            {
                "name": "blind",
                "policy": {"name": "blind", "weights_digest": "b"},
                **none,
                "by_task": {"close_box": none},
            },
        ],
    }
    evaluation.write_text(json.dumps(results))
    assert publish(run, destination, evaluation)
    card = (destination / "MODEL_CARD.md").read_text()
    assert "| unpruned | 50 % (24 … 76) | 50 % (24 … 76) |" in card
    assert not publish(run, destination)  # the same weights, and nothing known of what they do
    assert (destination / "MODEL_CARD.md").read_text() == card
    assert "| blind | 0 % (0 … 28) | 0 % (0 … 28) |" in card
    evaluation.write_text(json.dumps(results | {"configurations": results["configurations"][:1]}))
    with pytest.raises(TraceError, match="has no row of a blind policy"):
        publish(run, destination, evaluation)
    evaluation.write_text(json.dumps(results | {"scenes": {"scene": "0"}}))
    with pytest.raises(TraceError, match="in scenes of version 0"):
        publish(run, destination, evaluation)
    results["configurations"][0]["policy"]["weights_digest"] = "other"
    evaluation.write_text(json.dumps(results))
    with pytest.raises(TraceError, match="of other weights"):
        publish(run, destination, evaluation)
    evaluation.write_text("[" * 100_000)
    with pytest.raises(TraceError, match=r"evaluation.json: cannot be read"):
        publish(run, destination, evaluation)
    evaluation.write_text("{}")
    with pytest.raises(TraceError, match=r"evaluation.json: lacks what a card needs"):
        publish(run, destination, evaluation)


def test_a_run_without_held_out_loss_is_not_published(run, tmp_path):
    change(run, held_out={})
    with pytest.raises(TraceError, match="no held-out loss yet"):
        publish(run, tmp_path / "shipped")
    assert not (tmp_path / "shipped").exists()


def test_weights_that_the_papers_do_not_describe_are_not_published(run, tmp_path):
    change(run, weights_digest="other")
    with pytest.raises(TraceError, match=r"has other weights than training\.json"):
        publish(run, tmp_path / "shipped")
    (run / "policy" / "model.safetensors").unlink()
    with pytest.raises(PolicyError, match=r"model.safetensors"):
        publish(run, tmp_path / "shipped")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_is_no_published_policy_is_left_alone(run, tmp_path):
    for destination in (tmp_path / "notes", tmp_path / "run"):  # a run's own folder has a training.json too
        destination.mkdir(exist_ok=True)
        (destination / "thesis.txt").write_text("three years")
        with pytest.raises(ConfigError, match="holds no published policy"):
            publish(run, destination)
        assert (destination / "thesis.txt").read_text() == "three years"


@pytest.mark.parametrize("other", [{"blind": True}, {"tasks": ["close_box_narrow"]}])
def test_a_policy_of_another_kind_is_not_replaced(run, tmp_path, other):
    destination = tmp_path / "shipped"
    assert publish(run, destination)
    before = everything(destination)
    train_on(run, plan=read(run)["plan"] | other, held_out={"noise": 0.0})
    with pytest.raises(ConfigError, match=f"holds a policy with {next(iter(other))}"):
        publish(run, destination)
    assert everything(destination) == before


def test_the_command_says_what_it_needs(tmp_path):
    command = [sys.executable, "-m", "recorders.sim.train.publish"]
    for arguments, words in (((), "usage: publish"), ((tmp_path, tmp_path / "x"), "training.json: cannot be read")):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_weights_too_large_for_a_wheel_are_not_published(run, tmp_path, monkeypatch):
    size = (run / "policy" / "model.safetensors").stat().st_size
    monkeypatch.setattr("recorders.sim.train.publish._LARGEST_BYTES", size)
    assert publish(run, tmp_path / "fits")
    monkeypatch.setattr("recorders.sim.train.publish._LARGEST_BYTES", size - 1)
    with pytest.raises(TraceError, match=f"more than the {size - 1} bytes"):
        publish(run, tmp_path / "shipped")
    assert not (tmp_path / "shipped").exists()


def test_losses_on_other_frames_are_not_compared(run, tmp_path):
    assert publish(run, tmp_path / "shipped")
    plan = read(run)["plan"]
    train_on(run, plan=plan | {"tasks": plan["tasks"][::-1]}, held_out={"noise": 0.0})
    with pytest.raises(ConfigError, match="holds a policy with tasks"):
        publish(run, tmp_path / "shipped")


def test_what_is_damaged_is_named_and_nothing_is_written(run, tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(TraceError, match="cannot be followed"):
        publish(run, tmp_path / "loop")
    for damage in ({"held_out": {"noise": float("nan")}}, {"before": 7}):
        change(run, **damage)
        with pytest.raises(PolicyError, match="restore the file"):
            publish(run, tmp_path / "shipped")
    assert not (tmp_path / "shipped").exists()
