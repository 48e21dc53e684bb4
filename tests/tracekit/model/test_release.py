import dataclasses
import json
import lzma
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tracekit.errors import PolicyError
from tracekit.model import ReleaseOptions, load_directory, load_release, save_release
from tracekit.model.release import find_checkpoint
from tracekit.policy import Precision

from .release_files import SIDECAR, STATISTICS, UNUSED, release_policy, state_dicts, write_run


@pytest.fixture(scope="module")
def original():
    return release_policy()


@pytest.fixture(scope="module")
def pristine(original, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "run", state_dicts(original))


@pytest.fixture
def run(pristine, tmp_path):
    return Path(shutil.copytree(pristine, tmp_path / "run"))


def refusal(run, options=None) -> str:
    with pytest.raises(PolicyError) as caught:
        load_release(run, options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_widths_are_read_off_the_tensors(run, original):
    policy, skipped = load_release(run)
    assert policy.config == original.config
    assert policy.identity.weights_digest == original.identity.weights_digest
    assert policy.config.kv_heads == 2
    assert policy.identity.trained
    assert set(skipped) == {f"{module}.{key}" for module, entries in UNUSED.items() for key in entries}


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 40, "heads": 4, "kv_heads": 4, "layers": 1, "intermediate_size": 72},
        {"point_width": 12, "point_blocks": (1, 2), "point_outputs": 40, "image_width": 24, "vocab_size": 99},
    ],
)
def test_other_widths_load_too(changes, tmp_path):
    other = release_policy(**changes)
    policy, _ = load_release(write_run(tmp_path / "run", state_dicts(other)))
    assert policy.config == other.config
    assert policy.identity == other.identity.__class__(**{**other.identity.to_json(), "trained": True})


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's table of mappings")
def test_weights_are_mapped_not_copied(run):
    policy, _ = load_release(run)
    address = policy.backbone.layers[0].mlp.up_proj.weight.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, stop = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < stop:
            assert line.endswith(find_checkpoint(run).name)
            return
    pytest.fail("the weight is in no mapping")


def test_packed_checkpoints_are_unpacked_beside_nothing(run, original):
    path = find_checkpoint(run)
    packed = path.with_name(path.name + ".xz")
    packed.write_bytes(lzma.compress(path.read_bytes(), preset=0))
    path.unlink()
    policy, _ = load_release(run)
    assert policy.identity.weights_digest == original.identity.weights_digest
    assert [p.name for p in (run / "checkpoints").iterdir()] == [packed.name]
    packed.write_bytes(packed.read_bytes()[:-20])
    assert "damaged or cut off" in refusal(run)


def test_safetensors_in_place_of_the_pickle_load_the_same(run, original):
    path = find_checkpoint(run)
    flat = path.with_suffix(".safetensors")
    save_file({f"{m}.{k}": t for m, entries in state_dicts(original).items() for k, t in entries.items()}, flat)
    path.unlink()
    assert find_checkpoint(run) == flat
    policy, skipped = load_release(run)
    assert policy.identity.weights_digest == original.identity.weights_digest
    assert len(skipped) == 7
    flat.write_bytes(flat.read_bytes()[:-20])
    assert "damaged or cut off" in refusal(run)


def test_a_policy_goes_back_into_a_run_of_the_release(run, original, tmp_path):
    policy, _ = load_release(run)
    policy.tokenizer = original.tokenizer
    save_release(policy, tmp_path / "again")
    again, skipped = load_release(tmp_path / "again")
    assert again.identity.weights_digest == policy.identity.weights_digest
    assert dataclasses.replace(again.config, name="run") == policy.config
    assert again.tokenizer.encode("close box") == [1, 5, 6, 7, 8]
    assert skipped == ()
    modules = torch.load(find_checkpoint(tmp_path / "again"), weights_only=True)["model"]
    assert {*modules} <= {*state_dicts(original)}
    with pytest.raises(PolicyError, match="exists already"):
        save_release(policy, tmp_path / "again")


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"image_position": True}, "cannot say image_position = True"),
        ({"tactile_token": False, "max_text": 9}, "cannot say tactile_token = False, max_text = 9"),
    ],
)
def test_what_the_release_has_no_form_for_is_not_written(changes, lost, tmp_path):
    with pytest.raises(PolicyError, match=lost):
        save_release(release_policy(**changes), tmp_path / "run")
    assert not [*tmp_path.iterdir()]


def test_the_latest_step_is_taken(run):
    newer = run / "checkpoints" / "step-002000-epoch-09-loss=0.0100.pt"
    shutil.copy(find_checkpoint(run), newer)
    assert find_checkpoint(run) == newer


def test_load_directory_recognises_a_run(run):
    assert load_directory(run, Precision("bfloat16")).identity.name == "run"


def test_instructions_need_ids_or_a_tokenizer(run, original):
    policy, _ = load_release(run)
    with pytest.raises(PolicyError, match=r"tokenizer\.json beside the checkpoint"):
        policy.tokenizer.encode("close box")
    original.tokenizer.save(run)
    assert load_release(run)[0].tokenizer.encode("close box") == [1, 5, 6, 7, 8]


def test_what_tensors_do_not_say_is_asked_for_by_name(run):
    (run / "tracekit.json").unlink()
    assert "do not say heads, rms_norm_eps, rope_theta, action_window, ddim_steps" in refusal(run)
    assert "do not say rope_theta, ddim_steps;" in refusal(
        run, ReleaseOptions(heads=4, rms_norm_eps=1e-5, action_window=3)
    )
    load_release(run, ReleaseOptions(**SIDECAR))


def test_sources_are_asked_in_order(run):
    (run / "golden.json").write_text(json.dumps({**SIDECAR, "ddim_steps": 9, "future_action_window_size": 6}))
    (run / "config.json").write_text(json.dumps({"vla": {"future_action_window_size": 8}, "rope_theta": 7.0}))
    (run / "tracekit.json").write_text(json.dumps({"heads": 4, "rms_norm_eps": 1e-6}))
    policy, _ = load_release(run, ReleaseOptions(rms_norm_eps=1e-3))
    found = {name: getattr(policy.config, name) for name in SIDECAR}
    assert found == {"heads": 4, "rms_norm_eps": 1e-3, "rope_theta": 10000.0, "action_window": 7, "ddim_steps": 9}


@pytest.mark.parametrize("window", ["x", 1.5, [2]])
def test_a_window_that_is_no_number_is_refused(run, window):
    (run / "tracekit.json").write_text(json.dumps({k: v for k, v in SIDECAR.items() if k != "action_window"}))
    (run / "config.json").write_text(json.dumps({"vla": {"future_action_window_size": window}}))
    assert "action_window = " in refusal(run)
    (run / "config.json").write_text(json.dumps({"vla": {"future_action_window_size": None}}))
    assert "do not say action_window;" in refusal(run)


def test_only_the_7b_width_has_values_of_its_own():
    from tracekit.model.release import _settings

    with pytest.raises(PolicyError, match="width 2048"):
        _settings(Path("nowhere"), ReleaseOptions(), 2048)
    assert _settings(Path("nowhere"), ReleaseOptions(ddim_steps=4), 4096) == {
        "heads": 32,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "action_window": 1,
        "ddim_steps": 4,
    }


@pytest.mark.parametrize(
    ("sidecar", "message"),
    [
        ({**SIDECAR, "head": 3}, "unknown keys ['head']"),
        ({**SIDECAR, "heads": "four"}, "heads = 'four' is not a number of its kind"),
        ({**SIDECAR, "heads": 5}, "5 heads do not fit"),
        ({**SIDECAR, "ddim_steps": 101}, "ddim_steps = 101"),
        ({**SIDECAR, "cameras": {"front": "nowhere"}}, "cameras name 'nowhere'"),
    ],
)
def test_unusable_sidecars_get_one_line(run, sidecar, message):
    (run / "tracekit.json").write_text(json.dumps(sidecar))
    assert message in refusal(run)


def test_statistics_are_chosen_by_key_or_the_only_ones(run):
    assert "no statistics 'libero'; it holds ['rlbench']" in refusal(run, ReleaseOptions(statistics="libero"))
    both = {"action": STATISTICS, "proprio": STATISTICS}
    (run / "dataset_statistics.json").write_text(json.dumps({"a": both, "b": both}))
    assert "holds ['a', 'b']; choose one" in refusal(run)
    load_release(run, ReleaseOptions(statistics="b"))
    (run / "dataset_statistics.json").write_text(json.dumps({"a": {"action": STATISTICS}}))
    assert "'proprio' lacks usable q01, q99 and mask" in refusal(run)
    short = {"action": {**STATISTICS, "q01": [0.0]}, "proprio": STATISTICS}
    (run / "dataset_statistics.json").write_text(json.dumps({"a": short}))
    assert "1, 7 and 7 entries" in refusal(run)
    (run / "dataset_statistics.json").unlink()
    assert "dataset_statistics.json: cannot be read" in refusal(run)


def test_every_tensor_that_does_not_fit_is_named_in_one_error(run, original):
    modules = state_dicts(original)
    gone = [key for key in modules["vision_tower_3d"] if "running_" in key]
    for key in gone:
        del modules["vision_tower_3d"][key]
    del modules["llm_backbone"]["llm.model.embed_tokens.weight"]
    modules["projector_2d"]["mlp.0.weight"] = modules["projector_2d"]["mlp.0.weight"].T.contiguous()
    modules["x_embedder"]["mlp.fc3.weight"] = torch.zeros(2)
    torch.save({"model": modules}, find_checkpoint(run))
    message = refusal(run)
    assert len(gone) == 14
    for key in gone:
        assert f"missing vision_tower_3d.{key}" in message
    assert "missing llm_backbone.llm.model.embed_tokens.weight (17, 32)" in message
    assert "projector_2d.mlp.0.weight is (16, 32) instead of (32, 16)" in message
    assert "unexpected x_embedder.mlp.fc3.weight (2,)" in message
    assert "17 tensors do not fit" in message


def test_a_checkpoint_without_a_module_says_which_widths_cannot_be_read(run, original):
    modules = state_dicts(original)
    del modules["vision_tower_3d"], modules["projector_3d"]
    torch.save({"model": modules}, find_checkpoint(run))
    assert "has none of" in refusal(run)


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_a_pickle_that_is_not_tensors_is_refused_and_not_run(run, monkeypatch):
    monkeypatch.chdir(run)
    path = find_checkpoint(run)
    torch.save({"model": {"x_embedder": {"weight": Malicious()}}}, path)
    assert "not an archive of tensors alone" in refusal(run)
    path.write_bytes(pickle.dumps(Malicious()))
    assert "not an archive of tensors alone" in refusal(run)
    assert not (run / "executed").exists()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_a_truncated_checkpoint_is_refused(run, share):
    path = find_checkpoint(run)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert "damaged or cut off" in refusal(run)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": {}}, "not laid out as"),
        ([1, 2], "not laid out as"),
        ({"model": {"x_embedder": 3}}, "not laid out as"),
        ({"model": {"x_embedder": {"weight": 3}}}, "not tensors: x_embedder.weight"),
    ],
)
def test_other_layouts_are_refused(run, content, message):
    torch.save(content, find_checkpoint(run))
    assert message in refusal(run)


def test_an_unknown_action_size_is_refused(run, original):
    modules = state_dicts(original)
    for module in ("x_embedder", "proprio_embedder"):
        modules[module]["mlp.fc1.weight"] = torch.zeros(32, 14)
    torch.save({"model": modules}, find_checkpoint(run))
    assert "actions of 14 numbers; known are 7 (euler angles) and 10" in refusal(run)


def test_a_folder_without_checkpoint_says_what_is_expected(tmp_path):
    assert "no checkpoints/step-*.pt" in refusal(tmp_path)
