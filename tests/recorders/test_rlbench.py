"""RLBench's observations and actions against the release's conventions."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from recorders import rlbench
from tracekit.errors import PolicyError


def seen(**changes):
    random = np.random.default_rng(0)
    cloud = random.uniform((-2, -2, 0), (2, 2, 3.5), (224, 224, 3)).astype(np.float32)
    values = {
        "front_rgb": random.integers(0, 256, (224, 224, 3), dtype=np.uint8),
        "front_point_cloud": cloud,
        "gripper_pose": np.array([0.3, -0.1, 1.4, *Rotation.from_euler("xyz", (3.0, 0.2, -1.0)).as_quat()]),
        "gripper_open": 1.0,
    }
    return SimpleNamespace(**{**values, **changes})


def test_policy_input_is_the_front_view_and_a_cropped_cloud():
    observation = seen()
    made = rlbench.policy_input(observation, "close box", rlbench.initial_state(observation), np.random.default_rng(1))
    assert made.points.shape == (1024, 3)
    assert made.points.dtype == np.float32
    assert (made.points > np.array(rlbench.CROP_LOW)).all()
    assert (made.points < np.array(rlbench.CROP_HIGH)).all()
    rows = {tuple(point) for point in observation.front_point_cloud.reshape(-1, 3).tolist()}
    drawn = {tuple(point) for point in made.points.tolist()}
    assert len(drawn) == 1024
    assert drawn <= rows
    assert np.array_equal(made.images["front"], observation.front_rgb)
    assert made.cameras["front"].fx == -307.7174807
    again = rlbench.policy_input(observation, "close box", made.state, np.random.default_rng(1))
    assert np.array_equal(again.points, made.points)


def test_a_sparse_scene_repeats_its_points():
    cloud = np.full((224, 224, 3), np.nan, np.float32)
    cloud[0, :10] = np.arange(30, dtype=np.float32).reshape(10, 3) / 30 + (0, 0, 1)
    made = rlbench.policy_input(seen(front_point_cloud=cloud), "x", np.zeros(7), np.random.default_rng(1))
    assert {tuple(p) for p in made.points.tolist()} == {tuple(p) for p in cloud[0, :10].tolist()}


def test_initial_state_is_where_the_gripper_is():
    assert np.allclose(rlbench.initial_state(seen()), [0.3, -0.1, 1.4, 3.0, 0.2, -1.0, 1.0])


angles = st.floats(-3.1, 3.1)


@given(turn=st.tuples(angles, st.floats(-1.5, 1.5), angles), offset=st.tuples(*[st.floats(-0.2, 0.2)] * 3))
def test_actions_become_absolute_poses(turn, offset):
    action = np.array([*offset, *turn, 0.49])
    out = rlbench.environment_action(seen(), action)
    assert out.shape == (8,)
    assert np.allclose(out[:3], np.array([0.3, -0.1, 1.4]) + offset)
    assert np.isclose(np.linalg.norm(out[3:7]), 1)
    between = Rotation.from_quat(out[3:7]).inv() * Rotation.from_euler("xyz", turn)
    assert between.magnitude() < 1e-6
    assert out[7] == 0.0
    state = rlbench.state_after(seen(), action)
    assert np.allclose(state[:3], out[:3])
    assert np.array_equal(state[3:], action[3:])


def test_the_gripper_opens_at_the_threshold():
    assert rlbench.environment_action(seen(), np.array([0, 0, 0, 0, 0, 0, 0.5]))[7] == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"front_rgb": np.zeros((128, 128, 3), np.uint8)}, "set the front camera of RLBench to (224, 224)"),
        ({"front_rgb": None}, "front_rgb is object"),
        ({"front_point_cloud": None}, "no front_point_cloud"),
        ({"front_point_cloud": np.zeros((224, 224, 3))}, "no point of the front camera"),
    ],
)
def test_other_observations_are_refused(changes, message):
    with pytest.raises(PolicyError) as caught:
        rlbench.policy_input(seen(**changes), "x", np.zeros(7), np.random.default_rng(0))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_poses_states_and_actions_are_refused():
    with pytest.raises(PolicyError, match="unit quaternion"):
        rlbench.initial_state(seen(gripper_pose=np.zeros(7)))
    with pytest.raises(PolicyError, match="initial_state or state_after"):
        rlbench.policy_input(seen(), "x", np.zeros(8), np.random.default_rng(0))
    with pytest.raises(PolicyError, match="needs"):
        rlbench.environment_action(seen(), np.zeros(8))


def test_importing_needs_no_simulator():
    code = "import sys, recorders.rlbench; assert not {'rlbench', 'pyrep'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
