import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracekit.actions import ActionSpec, rotation_matrix
from tracekit.errors import PolicyError

angle = st.floats(-3.1, 3.1)


@given(angle, angle, angle)
def test_every_form_is_a_rotation(a, b, c):
    for form, values in (("euler_xyz", [a, b, c]), ("rotvec", [a, b, c]), ("rot6d", [a, b, c, 0.3, -1.0, 0.7])):
        if form == "rot6d" and np.linalg.norm(np.cross(values[:3], values[3:])) < 1e-3:
            continue
        matrix = rotation_matrix(form, np.array(values))
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-9)
        assert np.linalg.det(matrix) == pytest.approx(1.0)


@given(angle)
def test_forms_agree_about_a_turn_around_z(turn):
    expected = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    columns = np.concatenate([expected[:, 0], expected[:, 2]])
    for form, values in (("euler_xyz", [0, 0, turn]), ("rotvec", [0, 0, turn]), ("rot6d", columns)):
        np.testing.assert_allclose(rotation_matrix(form, np.array(values)), expected, atol=1e-9)


def test_extrinsic_order_x_then_y_then_z():
    matrix = rotation_matrix("euler_xyz", np.array([np.pi / 2, 0.0, np.pi / 2]))
    np.testing.assert_allclose(
        matrix @ [0, 1, 0], [0, 0, 1], atol=1e-12
    )  # about x first: y becomes z, which z leaves alone


def test_sizes_and_names_follow_the_rotation_form():
    assert ActionSpec().size == len(ActionSpec().names) == len(ActionSpec().units) == 10
    release = ActionSpec(rotation_form="euler_xyz")
    assert release.size == len(release.names) == 7
    assert release.units == ("m", "m", "m", "rad", "rad", "rad", "fraction")


def test_split_and_its_refusal():
    spec = ActionSpec(rotation_form="euler_xyz")
    translation, rotation, gripper = spec.split(np.array([0.1, 0.2, 0.3, 0, 0, 0, 1.0]))
    assert translation.tolist() == [0.1, 0.2, 0.3]
    assert rotation.tolist() == np.eye(3).tolist()
    assert gripper == 1.0
    with pytest.raises(PolicyError, match=r"shape \(3,\).*needs \(7,\)"):
        spec.split(np.zeros(3))


@given(st.lists(st.sampled_from([0.0, 1.0, -1.0, 1e-9, 0.5]), min_size=6, max_size=6))
def test_degenerate_columns_still_give_a_rotation(columns):
    matrix = rotation_matrix("rot6d", np.array(columns))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(matrix) == pytest.approx(1.0)
