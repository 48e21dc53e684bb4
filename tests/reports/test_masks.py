"""The picture of the masks, and the classes it is drawn from."""

import matplotlib.image
import numpy as np
import pytest

import reports.masks
from replay import Replay, SavedReplay
from reports import draw_masks, mask_classes
from tests.small import make_config, record_trace
from tracekit import keys
from tracekit.errors import TraceError
from tracekit.store import Trace

CONFIGS = (make_config("tri_stage"), make_config("naive", rate=0.9))


@pytest.fixture(scope="module")
def result(small_trace):
    return Replay(small_trace).run(*CONFIGS)


@pytest.fixture(scope="module")
def saved(result, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "replay"
    result.save(path)
    return path


def test_classes_are_the_four_combinations():
    found = mask_classes(np.array([False, True, False, True]), np.array([False, False, True, True]))
    assert found.tolist() == [0, 1, 2, 3]
    assert found.dtype == np.uint8


def test_a_patch_rule_keeps_points_where_there_are_any(result, saved, small_trace):
    stored = dict(SavedReplay(saved).episodes("tri_stage"))["close_box-7"]
    recording = Trace.open(small_trace).episode("close_box-7")
    found = reports.masks._classes(stored, recording)
    patches = recording.read(keys.POINT_PATCH)[:, -1]
    for classes, step, patch in zip(found, result.episodes["tri_stage"][0].steps, patches, strict=True):
        decision, owned = step.result.decision, np.isin(np.arange(256), patch)
        np.testing.assert_array_equal(classes, decision.keep_2d + 2 * (decision.keep_3d_patches & owned))
    assert set(np.unique(found[0])) == {1, 3}  # cold start: a patch without points keeps its image token alone
    assert set(np.unique(found)) >= {0, 1, 3}


def test_a_token_rule_keeps_a_patch_in_which_any_point_is_kept(result, saved, small_trace):
    stored = dict(SavedReplay(saved).episodes("naive"))["close_box-7"]
    recording = Trace.open(small_trace).episode("close_box-7")
    found = reports.masks._classes(stored, recording)
    patches = recording.read(keys.POINT_PATCH)[:, -1]
    for classes, step, patch in zip(found, result.episodes["naive"][0].steps, patches, strict=True):
        decision = step.result.decision
        kept = {int(p) for p, keep in zip(patch, decision.keep_3d_tokens, strict=True) if keep and p >= 0}
        expected = [int(decision.keep_2d[p]) + 2 * (p in kept) for p in range(256)]
        assert classes.tolist() == expected


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_picture_is_written(saved, tmp_path, suffix):
    out = draw_masks(saved, tmp_path / f"masks{suffix}")
    assert out == tmp_path / f"masks{suffix}"
    data = out.read_bytes()
    assert data.startswith({".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix])
    if suffix == ".svg":
        for word in ("step 4", "tri_stage", "naive", "2D only", "3D only", "neither"):
            assert word in text_of(data), word


def text_of(svg):
    return svg.decode()  # matplotlib repeats every text as a comment beside its outlines


def test_the_picture_shows_the_camera_and_darkens_what_is_dropped(saved, tmp_path, small_trace):
    everything = matplotlib.image.imread(draw_masks(saved, tmp_path / "all.png"))
    naive = matplotlib.image.imread(draw_masks(saved, tmp_path / "naive.png", configurations=["naive"]))
    assert everything.shape[0] > naive.shape[0]  # a row less
    assert everything.shape[1] == naive.shape[1]
    other = matplotlib.image.imread(
        draw_masks(saved, tmp_path / "other.png", configurations=["naive"], episode="close_laptop-3")
    )
    assert other.shape[1] < naive.shape[1]  # two steps, not four


def test_long_episodes_show_the_first_two_steps_and_the_last():
    assert reports.masks._columns(5) == [0, 1, 2, 3, 4]
    columns = reports.masks._columns(30)
    assert len(columns) == reports.masks.MOST_COLUMNS
    assert columns[:2] == [0, 1]
    assert columns[-1] == 29
    assert columns == sorted(set(columns))


def test_what_is_not_there_is_named(saved, tmp_path, tmp_path_factory, small_policy):
    shorter = record_trace(tmp_path_factory.mktemp("shorter") / "trace", small_policy, (("close_box", 7, 2),))
    for options, words in (
        ({"configurations": ["half"]}, r"no configuration 'half'; it has: tri_stage, naive"),
        ({"episode": "close_box-8"}, "close_box-8"),
        ({"trace": tmp_path / "nowhere"}, "nowhere"),
        ({"trace": saved}, r"tracekit\.replay"),
        ({"trace": shorter}, "not the trace that was replayed"),
    ):
        with pytest.raises(TraceError, match=words):
            draw_masks(saved, tmp_path / "masks.png", **options)
    with pytest.raises(TraceError, match=r"\.png, \.svg or \.pdf"):
        draw_masks(saved, tmp_path / "masks.gif")
    with pytest.raises(TraceError, match="does not exist"):
        draw_masks(saved, tmp_path / "missing" / "masks.png")
    assert list(tmp_path.iterdir()) == []
