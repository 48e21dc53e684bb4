import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracekit.errors import TraceError
from tracekit.model.cameras import CAMERAS
from tracekit.philox import Modality, Purpose, uniforms
from tracekit.pruning import Decision, DecisionKey, observed_patches, point_mask
from tracekit.pruning.points import nearest_patches

KEY = DecisionKey(5, 6, 7)


@st.composite
def cases(draw):
    patches, points = draw(st.integers(1, 6)), draw(st.integers(0, 12))
    mask = draw(st.lists(st.booleans(), min_size=patches, max_size=patches))
    where = draw(st.lists(st.integers(-1, patches - 1), min_size=points, max_size=points))
    return mask, where, draw(st.sampled_from(["keep", "drop", "random"])), draw(st.integers(0, 7))


@settings(max_examples=300, deadline=None)
@given(cases())
def test_a_point_follows_its_patch(case):
    mask, where, rule, index = case
    decision = Decision(np.array(mask), np.array(mask), unprojected=rule)
    found = point_mask(decision, np.array(where, np.int32), index, KEY)
    placed = [mask[p] for p in where if p >= 0]
    share = sum(placed) / len(placed) if placed else 1.0
    drawn = uniforms(KEY, Purpose.UNPROJECTED, Modality.POINT, 256 * index + np.arange(len(where)))
    for point, patch in enumerate(where):
        lost = {"keep": True, "drop": False, "random": drawn[point] < share}[rule]
        assert found[point] == (mask[patch] if patch >= 0 else lost)


def test_random_keeps_unprojected_points_with_the_share_of_the_others():
    where = np.concatenate([np.arange(256) % 4, np.full(2000, -1)]).astype(np.int32)
    mask = np.array([True, False, False, False])
    kept = point_mask(Decision(mask, mask, unprojected="random"), where, 0, KEY)
    assert kept[256:].mean() == pytest.approx(0.25, abs=0.04)


def test_a_pass_has_draws_of_its_own():
    where = np.concatenate([[0, 1], np.full(100, -1)]).astype(np.int32)
    decision = Decision(np.array([True, False]), np.array([True, False]), unprojected="random")
    assert point_mask(decision, where, 0, KEY).tolist() != point_mask(decision, where, 1, KEY).tolist()


def test_no_points_no_mask():
    assert point_mask(Decision(np.ones(4, bool), None), np.zeros(0, np.int32), 0, KEY).shape == (0,)


def test_points_that_do_not_fit_the_decision_are_refused():
    mask = np.ones(4, bool)
    with pytest.raises(TraceError, match="patch 4, but there are 4"):
        point_mask(Decision(mask, mask), np.array([4], np.int32), 0, KEY)
    with pytest.raises(TraceError, match="over 4"):
        point_mask(Decision(mask, None, mask), np.array([0], np.int32), 0, KEY)


@settings(deadline=None)
@given(cases())
def test_observed_is_image_token_and_all_projected_points(case):
    mask, where, _, _ = case
    kept = np.arange(len(where)) % 3 > 0
    found = observed_patches(np.array(mask), kept, np.array(where, np.int32))
    for patch, image in enumerate(mask):
        assert found[patch] == (image and all(k for k, p in zip(kept, where, strict=True) if p == patch))


def through(camera, u, v, depth):
    """The world point that the camera sees at pixel (u, v) and `depth` metres along its axis."""
    local = np.array([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, 1.0]) * depth
    return np.asarray(camera.rotation) @ local + np.asarray(camera.translation)


@pytest.mark.parametrize("name", ["rlbench_front", "franka_right"])
def test_the_nearest_ray_is_that_of_the_patch_the_point_lies_in_or_beside(name):
    camera = CAMERAS[name]
    width, height = camera.width / 16, camera.height / 16
    inside = [through(camera, (c + 0.5) * width, (r + 0.5) * height, 1.3) for r in (0, 7, 15) for c in (0, 8, 15)]
    beside = [through(camera, -0.4 * width, 5.5 * height, 0.9), through(camera, 16.4 * width, 3.5 * height, 2.0)]
    behind = [through(camera, 8.5 * width, 8.5 * height, -1.0)]
    centres = np.array(inside + beside + behind, np.float32)
    patch = np.full(len(centres), -1, np.int32)
    found = nearest_patches(centres, patch, {0: camera})
    assert found[:9].tolist() == [16 * r + c for r in (0, 7, 15) for c in (0, 8, 15)]
    assert found[:9].tolist() == camera.patches(centres[:9]).tolist()
    assert found[9:11].tolist() == [16 * 5 + 0, 16 * 3 + 15]
    assert 0 <= found[11] < 256
    assert nearest_patches(centres, patch, {2: camera}).tolist() == (found + 512).tolist()


def test_only_unprojected_points_move_and_the_nearest_view_wins():
    near, far = CAMERAS["franka_front"], CAMERAS["franka_right"]
    seen_by_far = np.array([through(far, 320, 240, 1.0), [0.1, 0.2, 0.3]], np.float32)
    patch = np.array([-1, 17], np.int32)
    found = nearest_patches(seen_by_far, patch, {0: near, 1: far})
    assert found[1] == 17
    alone = [nearest_patches(seen_by_far, patch, {view: camera})[0] for view, camera in enumerate((near, far))]
    assert found[0] in alone
    assert patch.tolist() == [-1, 17]
    with pytest.raises(TraceError, match="no view has a camera"):
        nearest_patches(seen_by_far, patch, {})
    assert nearest_patches(seen_by_far, np.zeros(2, np.int32), {}).tolist() == [0, 0]
