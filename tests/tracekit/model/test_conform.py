import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.release_double.golden import write_golden
from tracekit.errors import PolicyError
from tracekit.model import CAMERAS
from tracekit.model.conform import DERIVED_ARRAYS, DIRECT_ARRAYS, EXACT, PRUNED, conform, relative_error
from tracekit.model.release import find_checkpoint

from .release_files import release_policy, state_dicts, write_conformance


@pytest.fixture(scope="module")
def golden_report(golden):
    return conform(golden)


def test_the_numbers_of_the_public_release_are_reproduced(golden_report):
    assert set(golden_report.arrays) == DERIVED_ARRAYS | DIRECT_ARRAYS | EXACT
    for name, result in golden_report.arrays.items():
        limit = 0 if name in EXACT else 1e-4 if name in DERIVED_ARRAYS else 1e-5
        assert result.rel_error <= limit, name
        assert result.ok
    assert golden_report.ok


def test_a_kept_prefix_equals_the_full_recompute_and_pinning_is_told_apart(golden_report):
    assert golden_report.prefix_kv.rel_error < 1e-5
    assert golden_report.pinning > 10 * golden_report.prefix_kv.rel_error, "pinning FPS does change the action"


def test_golden_projection_is_exact_by_the_built_in_camera(golden):
    with np.load(golden / "golden.npz") as file:
        cell, seen = CAMERAS["rlbench_front"].raster(file["point_centres"][0])
        np.testing.assert_array_equal(cell, file["patch_row_col_step0"])
        np.testing.assert_array_equal(seen, file["patch_valid_step0"])


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return write_conformance(tmp_path_factory.mktemp("conformance") / "run", release_policy())


@pytest.fixture
def folder(pristine, tmp_path):
    return Path(shutil.copytree(pristine, tmp_path / "run"))


def test_other_widths_windows_and_steps_conform_too(folder):
    report = conform(folder)
    assert report.ok, report.to_json()
    assert set(report.arrays) == DERIVED_ARRAYS | DIRECT_ARRAYS | EXACT
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert data["ok"] is True
    assert data["arrays"]["action"] == {"rel_error": report.arrays["action"].rel_error, "ok": True}
    assert len(data["skipped"]) == 7


@pytest.mark.parametrize(
    ("tensor", "first_wrong"),
    [
        ("projector_2d.mlp.0.bias", "inputs_embeds"),
        ("llm_backbone.llm.model.layers.1.self_attn.q_proj.weight", "attention_rows_step0"),
        ("final_layer.norm_final.weight", "predicted_noise"),
        ("llm_backbone.llm.lm_head.weight", "lm_head_l1"),
    ],
)
def test_a_wrong_weight_fails_what_depends_on_it(folder, tensor, first_wrong):
    modules = state_dicts(release_policy())
    module, key = tensor.split(".", 1)
    modules[module][key] += 1e-3
    torch.save({"model": modules}, find_checkpoint(folder))
    report = conform(folder)
    assert not report.ok
    failed = {name for name, result in report.arrays.items() if not result.ok}
    assert first_wrong in failed
    assert {"point_centres", "patch_valid_step0", "denoise_timesteps"}.isdisjoint(failed)
    if first_wrong == "lm_head_l1":
        assert failed == {"lm_head_l1"}
    if first_wrong == "predicted_noise":
        assert failed <= DERIVED_ARRAYS | {"inputs_embeds", "lm_head_l1"}


def test_the_epsilon_of_the_norm_matters(folder):
    settings = json.loads((folder / "golden.json").read_text())
    (folder / "golden.json").write_text(json.dumps({**settings, "rms_norm_eps": 1e-2}))
    report = conform(folder)
    assert not report.ok
    assert not report.arrays["hidden_states_step0"].ok
    assert report.arrays["point_centres"].ok


def edit_golden(folder, **changes):
    with np.load(folder / "golden.npz") as file:
        arrays = {name: file[name] for name in file.files} | changes
    np.savez(folder / "golden.npz", **{name: value for name, value in arrays.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None}, "lacks the inputs image"),
        ({"state": np.zeros(0)}, "lacks the inputs state"),
        ({"state": np.array(["a"] * 7)}, "state hold no numbers"),
        ({"pruned_keep": None}, "lacks the inputs pruned_keep"),
        ({"pruned_keep": np.ones(7, bool)}, r"pruned_keep marks 7 rows of a sequence of \d+"),
        (
            {"noisy_action": np.zeros((4, 1, 2, 7), np.float32)},
            r"noisy actions of shape \(1, 2, 7\).*set action_window",
        ),
        ({"point_cloud": np.zeros((1, 1024, 6), np.float32)}, r"shape \(1024, 6\).*x, y, z only"),
        ({"fps_start_indices": np.zeros((9, 2), np.int64)}, "9 denoise passes, the policy 4"),
    ],
)
def test_unusable_golden_files_get_one_line(folder, changes, message):
    edit_golden(folder, **changes)
    with pytest.raises(PolicyError, match=message) as caught:
        conform(folder)
    assert "\n" not in str(caught.value)


def test_what_is_unknown_or_absent_is_named_and_the_rest_checked(folder):
    gone = {"pruned_keep", "hidden_states_step0", *PRUNED}
    edit_golden(folder, mystery=np.zeros(3), **dict.fromkeys(gone))
    report = conform(folder)
    assert report.ok
    assert report.unknown == ("mystery",)
    assert {*report.absent} == gone - {"pruned_keep"}
    assert {*report.arrays} == (DERIVED_ARRAYS | DIRECT_ARRAYS | EXACT) - gone


def test_attention_rows_are_taken_where_the_file_has_them(folder):
    with np.load(folder / "golden.npz") as file:
        rows, positions = file["attention_rows_step0"], file["attention_row_positions"]
    edit_golden(folder, attention_rows_step0=rows[:, :, ::2], attention_row_positions=positions[::2])
    report = conform(folder)
    assert [name for name, result in report.arrays.items() if not result.ok] == ["attention_row_positions"]
    edit_golden(folder, attention_row_positions=positions + 5000)
    assert not conform(folder).arrays["attention_rows_step0"].ok


def test_numbers_of_another_precision_are_not_compared(folder):
    settings = json.loads((folder / "golden.json").read_text())
    (folder / "golden.json").write_text(json.dumps({**settings, "precision": "bf16"}))
    with pytest.raises(PolicyError, match="precision 'bf16'; only numbers computed in fp32"):
        conform(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "widths",
    [
        {"hidden_size": 96, "heads": 6, "kv_heads": 6, "layers": 5, "intermediate_size": 200, "ddim_steps": 10},
        {"action_window": 16, "ddim_steps": 5, "layers": 1, "image_width": 64, "image_heads": 8, "rms_norm_eps": 1e-6},
        {"action_window": 1, "ddim_steps": 2, "point_width": 96, "point_outputs": 768, "rope_theta": 5e3, "layers": 3},
    ],
)
def test_numbers_of_the_stand_in_for_the_release_are_reproduced(widths, tmp_path, monkeypatch):
    """Computed by other code than ours, around Hugging Face's LLaMA; the vocabulary and ids are LLaMA's."""
    ids = [1, 512, 29901, 1724, 3158, 881, 278, 19964, 2125, 304, 3802, 3800, 29973, 13, 3744, 29901, 29871]
    folder = write_golden(tmp_path / "run", release_policy(vocab_size=32064, **widths), ids, monkeypatch)
    report = conform(folder)
    assert report.ok, report.to_json()
    assert not report.unknown
    assert not report.absent
    assert report.prefix_kv.rel_error < 1e-5


def test_damaged_golden_files_get_one_line(folder):
    (folder / "golden.npz").write_bytes((folder / "golden.npz").read_bytes()[:1000])
    with pytest.raises(PolicyError, match=r"golden\.npz: cannot be read"):
        conform(folder)
    (folder / "golden.npz").unlink()
    with pytest.raises(PolicyError, match=r"golden\.npz: cannot be read"):
        conform(folder)


def test_relative_error_is_that_of_the_largest_entry():
    assert relative_error(np.array([1.0, -4.0]), np.array([1.5, -5.0])) == pytest.approx(0.2)
    assert relative_error(np.zeros(3), np.zeros(3)) == 0
    assert relative_error(np.full(3, 1e-3), np.zeros(3)) == 1e-3
    assert relative_error(np.array([np.nan]), np.array([1.0])) == float("inf")
    assert relative_error(np.zeros(2), np.zeros(3)) == float("inf")
