"""What the package ships is replaced by better weights only, and its card speaks of just those weights."""

import json
from dataclasses import replace

import pytest

from recorders.sim.train import train
from recorders.sim.train.publish import publish
from tests.small import WIDTHS
from tracekit.errors import TraceError
from tracekit.model import MLA, REFERENCE_WORDS, WordTokenizer, initialise, load_policy_directory, reference


@pytest.fixture
def run(demonstrations, plan, tmp_path, monkeypatch):
    monkeypatch.setattr("recorders.sim.train.plan._HELD_OUT", 1)
    monkeypatch.setattr("recorders.sim.train.run._HELD_OUT_FRAMES", 2)
    small = initialise(MLA(replace(reference(), **WIDTHS), WordTokenizer(REFERENCE_WORDS)), 3)
    train(tmp_path / "run", demonstrations, replace(plan, steps=1), policy=small)
    return tmp_path / "run"


def change(run, **values):
    training = json.loads((run / "training.json").read_text()) | values
    (run / "training.json").write_text(json.dumps(training))
    return training


def test_only_a_lower_held_out_loss_replaces_what_is_there(run, tmp_path):
    destination = tmp_path / "shipped"
    assert publish(run, destination)
    policy = load_policy_directory(destination)
    assert policy.identity.weights_digest in (destination / "MODEL_CARD.md").read_text()
    assert (destination / "curve.jsonl").read_bytes() == (run / "curve.jsonl").read_bytes()
    loss = json.loads((run / "training.json").read_text())["held_out"]["noise"]
    before = (destination / "training.json").read_bytes()
    change(run, weights_digest="other", held_out={"noise": loss + 0.1})
    assert not publish(run, destination)
    assert (destination / "training.json").read_bytes() == before
    change(run, weights_digest="other", held_out={"noise": loss - 0.1})
    assert publish(run, destination)
    assert not list(tmp_path.glob(".shipped*"))


def test_losses_on_other_scenes_are_not_compared(run, tmp_path):
    destination = tmp_path / "shipped"
    assert publish(run, destination)
    training = json.loads((run / "training.json").read_text())
    change(run, weights_digest="other", held_out={"noise": training["held_out"]["noise"] + 0.1})
    assert not publish(run, destination)
    change(run, scene_version=training["scene_version"] + 1)
    assert publish(run, destination)


def test_the_card_takes_an_evaluation_of_the_same_weights_alone(run, tmp_path):
    destination, evaluation = tmp_path / "shipped", tmp_path / "evaluation.json"
    training = json.loads((run / "training.json").read_text())
    rate = {"success_rate": 0.5, "interval": [0.24, 0.76]}
    results = {
        "tasks": ["close_box"],
        "seeds": [0, 9],
        "configurations": [
            {"name": "unpruned", "policy": {"weights_digest": training["weights_digest"]}, **rate}
            | {"by_task": {"close_box": rate}}
        ],
    }
    evaluation.write_text(json.dumps(results))
    assert publish(run, destination, evaluation)
    assert "| unpruned | 50 % (24 … 76) | 50 % (24 … 76) |" in (destination / "MODEL_CARD.md").read_text()
    results["configurations"][0]["policy"]["weights_digest"] = "other"
    evaluation.write_text(json.dumps(results))
    with pytest.raises(TraceError, match="of other weights"):
        publish(run, destination, evaluation)


def test_a_run_without_held_out_loss_is_not_published(run, tmp_path):
    change(run, held_out={})
    with pytest.raises(TraceError, match="no held-out loss yet"):
        publish(run, tmp_path / "shipped")
    assert not (tmp_path / "shipped").exists()
