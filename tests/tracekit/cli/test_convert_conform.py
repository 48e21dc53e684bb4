import json
import shutil
import sys

import numpy as np
import pytest
import torch

from tests.tracekit.model.release_files import release_policy, state_dicts, write_conformance, write_run
from tracekit.cli import main
from tracekit.model.release import find_checkpoint
from tracekit.policy import load_policy


@pytest.fixture
def tracekit(monkeypatch, capsys):
    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tracekit", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    return run


@pytest.fixture
def folder(tmp_path):
    return write_conformance(tmp_path / "run", release_policy())


def test_convert_writes_a_policy_that_loads_as_the_run_does(tracekit, folder, tmp_path):
    status, out, err = tracekit("convert", folder, tmp_path / "policy")
    assert (status, err) == (0, "")
    assert "feed no action (7 tensors): generation_manager" in " ".join(out.split())
    converted, direct = load_policy(str(tmp_path / "policy")), load_policy(str(folder))
    assert converted.identity == direct.identity
    assert converted.config == direct.config
    assert sorted(p.name for p in (tmp_path / "policy").iterdir()) == [
        "config.json",
        "model.safetensors",
        "text_ids.json",
    ]


def test_convert_goes_back_to_a_run_that_conforms(tracekit, folder, tmp_path):
    assert tracekit("convert", folder, tmp_path / "policy")[0] == 0
    status, out, err = tracekit("convert", tmp_path / "policy", tmp_path / "back", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["skipped"] == []
    for name in ("golden.json", "golden.npz"):
        shutil.copy(folder / name, tmp_path / "back" / name)
    assert tracekit("conform", tmp_path / "back", "--json")[0] == 0
    status, out, err = tracekit("convert", tmp_path / "policy", tmp_path / "x", "--heads", 2)
    assert (status, out) == (2, "")
    assert "leave the options out" in err


def test_conform_takes_the_key_of_the_statistics(tracekit, folder):
    statistics = json.loads((folder / "dataset_statistics.json").read_text())
    (folder / "dataset_statistics.json").write_text(json.dumps({**statistics, "other": {}}))
    status, _, err = tracekit("conform", folder)
    assert status == 2
    assert "holds ['other', 'rlbench']; choose one" in err
    assert tracekit("conform", folder, "--statistics", "wrong")[0] == 2
    assert tracekit("conform", folder, "--statistics", "rlbench")[0] == 0


def test_convert_takes_what_the_tensors_do_not_say_as_options(tracekit, tmp_path):
    run = write_run(tmp_path / "run", state_dicts(release_policy()), sidecar=None)
    status, out, err = tracekit("convert", run, tmp_path / "p")
    assert (status, out) == (2, "")
    assert "do not say heads, rms_norm_eps, rope_theta, action_window, ddim_steps" in err
    assert not (tmp_path / "p").exists()
    options = ("--heads", 4, "--rms-norm-eps", 1e-5, "--rope-theta", 1e4, "--action-window", 3, "--ddim-steps", 5)
    status, out, _ = tracekit("convert", run, tmp_path / "p", *options, "--statistics", "rlbench", "--json")
    assert status == 0
    data = json.loads(out)
    assert set(data) == {"out", "policy", "skipped"}
    assert data["policy"] == load_policy(str(tmp_path / "p")).identity.to_json()
    assert load_policy(str(tmp_path / "p")).passes == 5
    assert len(data["skipped"]) == 7


def test_convert_leaves_an_existing_directory_alone(tracekit, folder):
    status, out, err = tracekit("convert", folder, folder / "checkpoints")
    assert (status, out) == (2, "")
    assert "exists already" in err


def test_conform_passes_and_prints_every_array(tracekit, folder):
    status, out, err = tracekit("conform", folder)
    assert (status, err) == (0, "")
    for name in ("hidden_states_step0", "patch_row_col_step0", "action", "prefix kept, FPS pinned"):
        assert name in out
    assert "FAIL" not in out
    status, out, _ = tracekit("conform", folder, "--json")
    assert status == 0
    data = json.loads(out)
    assert data["ok"] is True
    assert all(set(entry) == {"rel_error", "ok"} for entry in data["arrays"].values())


def test_conform_fails_where_a_number_differs(tracekit, folder):
    with np.load(folder / "golden.npz") as file:
        arrays = {name: file[name] for name in file.files}
    arrays["action"] = arrays["action"] + 1e-3
    np.savez(folder / "golden.npz", **arrays)
    status, out, _ = tracekit("conform", folder, "--json")
    data = json.loads(out)
    assert (status, data["ok"]) == (1, False)
    assert [name for name, entry in data["arrays"].items() if not entry["ok"]] == ["action"]
    status, out, _ = tracekit("conform", folder)
    assert status == 1
    assert out.count("FAIL") == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: find_checkpoint(f).write_bytes(find_checkpoint(f).read_bytes()[:5000]), "damaged or cut off"),
        (lambda f: torch.save({"model": {"a": {"b": {1, 2}}}}, find_checkpoint(f)), "not tensors: a.b"),
        (lambda f: (f / "golden.json").unlink(), "golden.json: cannot be read"),
        (lambda f: (f / "golden.npz").unlink(), "golden.npz: cannot be read"),
    ],
)
def test_unusable_input_is_one_line_and_exit_code_2(tracekit, folder, damage, message):
    damage(folder)
    status, out, err = tracekit("conform", folder, "--json")
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
