"""Deviations between hand-made poses whose distances are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.deviation import deviation
from tracekit.actions import ActionSpec
from tracekit.errors import PolicyError

EULER = ActionSpec(rotation_form="euler_xyz")
ROT6D = ActionSpec(rotation_form="rot6d")
ROTVEC = ActionSpec(rotation_form="rotvec")
ZERO = np.zeros((1, 7), np.float32)


def pose(x=0.0, y=0.0, z=0.0, rotation=(0.0, 0.0, 0.0), gripper=0.0):
    return np.array([[x, y, z, *rotation, gripper]])


def compare(ours, theirs, spec=EULER, unclipped=ZERO, recorded=ZERO):
    return deviation(spec, [ours], [theirs], [unclipped], [recorded])


def test_equal_actions_do_not_deviate():
    found = compare(pose(0.1, 0.2, 0.3, (0.4, 0.5, 0.6), 1), pose(0.1, 0.2, 0.3, (0.4, 0.5, 0.6), 1))
    assert (found.translation_mm, found.rotation_deg, found.gripper_flips) == (0, 0, 0)
    assert (found.unclipped_relative, found.clipped_share) == (0, 0)


def test_millimetres_are_the_length_of_the_difference():
    assert compare(pose(0.003, 0.004), pose()).translation_mm == pytest.approx(5, rel=1e-12)
    assert compare(pose(z=-0.25), pose(z=0.25)).translation_mm == pytest.approx(500, rel=1e-12)


@pytest.mark.parametrize("degrees", [1e-4, 1.0, 30.0, 90.0, 179.0, 180.0])
@pytest.mark.parametrize("axis", range(3))
def test_degrees_are_the_angle_between_the_rotations(degrees, axis):
    turn = np.eye(3)[axis] * np.radians(degrees)
    assert compare(pose(rotation=turn), pose()).rotation_deg == pytest.approx(degrees, rel=1e-9, abs=1e-9)


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(-3, 3), st.floats(0.001, 3.1))
def test_the_angle_does_not_depend_on_the_frame(x, y, z, angle):
    """Two turns about one axis, both composed with another rotation, still differ by the angle between them."""
    from tracekit.actions import rotation_matrix

    base = rotation_matrix("euler_xyz", np.array([x, y, z]))
    turned = base @ rotation_matrix("rotvec", np.array([0, 0, angle]))
    one, other = (np.concatenate([np.zeros(3), m[:, 0], m[:, 2], [0.0]])[None] for m in (base, turned))
    found = compare(one, other, ROT6D, np.zeros((1, 10), np.float32), np.zeros((1, 10), np.float32))
    assert found.rotation_deg == pytest.approx(np.degrees(angle), rel=1e-6)


def test_a_full_turn_is_no_turn():
    assert compare(pose(rotation=(0, 0, 2 * np.pi)), pose(), ROTVEC).rotation_deg == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("ours", "theirs", "flips"), [(0.0, 1.0, 1), (0.6, 1.0, 0), (0.5, 0.4, 0), (0.51, 0.5, 1)])
def test_grippers_flip_across_the_threshold(ours, theirs, flips):
    assert compare(pose(gripper=ours), pose(gripper=theirs)).gripper_flips == flips


def test_means_are_over_steps_and_chunks_and_flips_are_counted():
    ours = [np.vstack([pose(0.001, gripper=1), pose(0.002, gripper=1)]), np.vstack([pose(0.003), pose(0.006)])]
    theirs = [np.vstack([pose(), pose()]), np.vstack([pose(), pose()])]
    blank = [np.zeros((2, 7), np.float32)] * 2
    found = deviation(EULER, ours, theirs, blank, blank)
    assert found.translation_mm == pytest.approx(3, rel=1e-12)
    assert found.gripper_flips == 2


def test_unclipped_difference_is_relative_to_the_recorded_norm():
    recorded = np.array([[3.0, 4, 0, 0, 0, 0, 0]], np.float32)
    ours = recorded + np.array([[0, 0, 0.5, 0, 0, 0, 0]], np.float32)
    assert compare(pose(), pose(), unclipped=ours, recorded=recorded).unclipped_relative == pytest.approx(0.1)
    first, second = (compare(pose(), pose(), unclipped=a, recorded=b) for a, b in ((ours, recorded), (recorded, ours)))
    assert first.unclipped_relative != second.unclipped_relative


def test_the_share_of_clipped_entries_is_that_of_the_replayed_output():
    ours = np.array([[1.5, -2, 1, -1, 0, 0, 0.9]], np.float32)
    assert compare(pose(), pose(), unclipped=ours).clipped_share == pytest.approx(2 / 7)
    assert compare(pose(), pose(), recorded=ours).clipped_share == 0


def test_a_recorded_zero_does_not_divide_by_zero():
    found = compare(pose(), pose(), unclipped=np.ones((1, 7), np.float32))
    assert np.isfinite(found.unclipped_relative)


def test_actions_of_another_size_are_refused():
    with pytest.raises(PolicyError, match="shape"):
        compare(np.zeros((1, 10)), np.zeros((1, 10)))
