import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tracekit.errors import PolicyError
from tracekit.model import load_directory, load_policy_directory, save_policy
from tracekit.model.checkpoint import load_weights
from tracekit.policy import Precision, load_policy

from .conftest import make_observation, tiny_policy


@pytest.fixture
def saved(policy, tmp_path):
    save_policy(policy, tmp_path / "policy")
    return tmp_path / "policy"


@pytest.mark.usefixtures("no_grad")
def test_a_saved_policy_loads_as_the_same_policy(policy, saved):
    loaded = load_policy(str(saved))
    assert loaded.identity == policy.identity
    assert loaded.config == policy.config
    observation = make_observation(policy.config)
    ours, theirs = (p.embed_prefix(p.tokenize(observation), (1, 2)).rows for p in (policy, loaded))
    assert torch.equal(ours, theirs)


def test_trained_is_remembered(tmp_path):
    policy = tiny_policy()
    policy.trained = True
    save_policy(policy, tmp_path / "p")
    assert load_policy_directory(tmp_path / "p").identity.trained


def test_an_existing_directory_is_left_alone(policy, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(PolicyError, match="exists already"):
        save_policy(policy, tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_policy_frozen_in_bfloat16_is_not_saved(policy, tmp_path):
    with pytest.raises(PolicyError, match="save the float32 policy"):
        save_policy(policy.freeze(Precision("bfloat16")), tmp_path / "p")
    assert not (tmp_path / "p").exists()


def no_room(*_arguments, **_options):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_save_that_fails_leaves_nothing(policy, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(PolicyError, match="cannot be written"):
        save_policy(policy, tmp_path / "file" / "p")
    monkeypatch.setattr(Path, "write_text", no_room)
    with pytest.raises(PolicyError, match="cannot be written"):
        save_policy(policy, tmp_path / "p")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_every_tensor_that_does_not_fit_is_named_in_one_line(policy):
    tensors = dict(policy.state_dict())
    del tensors["final_layer.mlp.fc1.bias"]
    del tensors["vision_tower_3d.patch_embed.EncP.raw_point_embed.net.1.running_mean"]
    tensors["stranger.weight"] = torch.zeros(2, 3)
    tensors["proprio_embedder.mlp.fc1.weight"] = torch.zeros(32, 9)
    with pytest.raises(PolicyError) as caught:
        load_weights(policy, tensors, "x.safetensors")
    message = str(caught.value)
    assert "4 tensors do not fit" in message
    assert "missing final_layer.mlp.fc1.bias (32,)" in message
    assert "missing vision_tower_3d.patch_embed.EncP.raw_point_embed.net.1.running_mean (6,)" in message
    assert "unexpected stranger.weight (2, 3)" in message
    assert "proprio_embedder.mlp.fc1.weight is (32, 9) instead of (32, 10)" in message
    assert "\n" not in message


def test_changed_weights_are_noticed(saved):
    tensors = load_file(saved / "model.safetensors")
    tensors["final_layer.mlp.fc2.bias"] += 1
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(PolicyError, match=r"not those that config\.json was written for"):
        load_directory(saved, Precision())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-9]),
            "cannot be read",
        ),
        (lambda d: (d / "config.json").write_text("{"), "not JSON"),
        (lambda d: (d / "config.json").write_text("[]"), "not a JSON object"),
        (lambda d: (d / "config.json").unlink(), "cannot be read"),
        (lambda d: (d / "config.json").write_text('{"format": "tracekit.policy", "version": 2}'), "version 2"),
        (lambda d: (d / "vocabulary.json").write_text('{"words": 3}'), "lacks 'words'"),
        (lambda d: (d / "model.safetensors").unlink(), "no policy here"),
    ],
)
def test_damage_gets_one_line(saved, damage, message):
    damage(saved)
    with pytest.raises(PolicyError, match=message) as caught:
        load_directory(saved, Precision())
    assert str(saved) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_config_is_plain_json_with_the_digest(policy, saved):
    head = json.loads((saved / "config.json").read_text())
    assert head["weights_digest"] == policy.identity.weights_digest
    assert head["config"]["hidden_size"] == 32


def test_a_blank_policy_is_made_without_the_compiler():
    code = (
        "import sys; from tracekit.model import REFERENCE_WORDS, WordTokenizer, reference; "
        "from tracekit.model.checkpoint import blank_policy; "
        "policy = blank_policy(reference(), WordTokenizer(REFERENCE_WORDS), trained=False); "
        "print(policy.image_position.code.device, 'torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["cpu", "False"]
