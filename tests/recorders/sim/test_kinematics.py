"""The arm's kinematics against the Denavit-Hartenberg products written out, and the solver against itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recorders.sim.arm import HOME, JOINT_RANGES
from recorders.sim.geometry import cylindrical_step, rotated, rotation_between
from recorders.sim.kinematics import ArmKinematics

# alpha_{i-1}, a_{i-1}, theta offset, d_i in degrees and millimetres: the data sheet's table
TABLE = [
    (0, 0, 0, 123),
    (-90, 0, -172.22, 0),
    (0, 285.03, -102.78, 0),
    (90, -21.98, 0, 250.75),
    (-90, 0, 0, 0),
    (90, 0, 0, 91),
]
TOOL = 0.130
KINEMATICS = ArmKinematics()

joint_angles = st.tuples(*(st.floats(low * 0.95, high * 0.95) for low, high in JOINT_RANGES)).map(np.array)


def link(alpha: float, a: float, theta: float, d: float) -> np.ndarray:
    ca, sa, ct, st_ = np.cos(alpha), np.sin(alpha), np.cos(theta), np.sin(theta)
    return np.array(
        [[ct, -st_, 0, a], [st_ * ca, ct * ca, -sa, -d * sa], [st_ * sa, ct * sa, ca, d * ca], [0, 0, 0, 1]]
    )


@given(joint_angles)
def test_forward_kinematics_is_the_product_of_the_tables_links(joints):
    frame = np.eye(4)
    for (alpha, a, offset, d), joint in zip(TABLE, joints, strict=True):
        frame = frame @ link(np.deg2rad(alpha), a / 1000, np.deg2rad(offset) + joint, d / 1000)
    point, rotation = KINEMATICS.pose(joints)
    np.testing.assert_allclose(rotation, frame[:3, :3], atol=1e-9)
    np.testing.assert_allclose(point, frame[:3, 3] + TOOL * frame[:3, 2], atol=1e-9)


@settings(max_examples=40)
@given(st.tuples(*[st.floats(-0.3, 0.3)] * 6).map(np.array))
def test_the_solver_returns_to_a_pose_it_started_near(offset):
    goal = np.clip(HOME + offset, JOINT_RANGES[:, 0], JOINT_RANGES[:, 1])
    point, rotation = KINEMATICS.pose(goal)
    solution = KINEMATICS.solve(HOME, point, rotation, iterations=60)
    found, frame = KINEMATICS.pose(solution)
    np.testing.assert_allclose(found, point, atol=2e-4)
    assert np.linalg.norm(rotation_between(frame, rotation)) < 5e-3


def test_an_unreachable_orientation_does_not_cost_accuracy_in_place():
    point, rotation = KINEMATICS.pose(HOME)
    goal = point + np.array([0.05, 0.02, 0])
    solution = KINEMATICS.solve(HOME, goal, rotated(rotation, np.array([0, 0, 3.0])), iterations=100)
    found, _ = KINEMATICS.pose(solution)
    np.testing.assert_allclose(found, goal, atol=1e-3)


def test_joint_limits_are_never_left():
    solution = KINEMATICS.solve(HOME, np.array([2.0, 0.0, 0.0]), np.eye(3), iterations=50)
    assert ((solution >= JOINT_RANGES[:, 0]) & (solution <= JOINT_RANGES[:, 1])).all()


@given(st.tuples(*[st.floats(-2.9, 2.9)] * 3).map(np.array).filter(lambda v: np.linalg.norm(v) < 3.1))
def test_rotation_vectors_round_trip(turn):
    np.testing.assert_allclose(rotation_between(np.eye(3), rotated(np.eye(3), turn)), turn, atol=1e-7)


@pytest.mark.parametrize("longest", [0.03, 0.1])
def test_an_arc_about_the_base_keeps_its_radius_and_arrives(longest):
    point, goal = np.array([0.3, -0.3, 0.2]), np.array([0.3, 0.3, 0.2])
    for _ in range(100):
        following = cylindrical_step(point, goal, longest)
        assert np.linalg.norm(following - point) <= longest + 1e-12
        assert np.hypot(*following[:2]) == pytest.approx(np.hypot(0.3, 0.3))
        point = following
        if np.array_equal(point, goal):
            return
    pytest.fail("did not arrive")
