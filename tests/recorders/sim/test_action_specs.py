"""What an action's numbers mean is data: the arm, the expert and the state follow the spec of the policy."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recorders.sim import Environment, Expert
from recorders.sim.expert import expert_episode
from recorders.sim.geometry import rotated, rotation_values
from tracekit.actions import ROTATION_SIZES, ActionSpec, rotation_matrix
from tracekit.errors import PolicyError

SPECS = [
    ActionSpec(frame="world", translation=translation, rotation_form=form, rotation=rotation)
    for translation, form, rotation in itertools.product(
        ("delta", "absolute"), ("rot6d", "euler_xyz", "rotvec"), ("delta", "absolute")
    )
]


@given(st.lists(st.floats(-3.0, 3.0), min_size=3, max_size=3), st.sampled_from(list(ROTATION_SIZES)))
def test_rotation_values_are_the_inverse_of_rotation_matrix(turn, form):
    rotation = rotated(np.eye(3), np.array(turn))
    values = rotation_values(form, rotation)
    assert values.shape == (ROTATION_SIZES[form],)
    np.testing.assert_allclose(rotation_matrix(form, values), rotation, atol=1e-9)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.translation}-{spec.rotation_form}-{spec.rotation}")
def test_the_expert_succeeds_whatever_its_numbers_mean(spec):
    usual = expert_episode(Environment("close_box", sensor=False), 3)
    assert expert_episode(Environment("close_box", spec, sensor=False), 3) == usual
    assert usual.success


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.translation}-{spec.rotation_form}-{spec.rotation}")
def test_state_and_motion_are_those_of_the_usual_spec(spec):
    one, other = Environment("close_fridge", sensor=False), Environment("close_fridge", spec, sensor=False)
    one.reset(5), other.reset(5)
    first, second = one.step(Expert(one).act()), other.step(Expert(other).act())
    ours, theirs = one.action_spec.split(first.observation.state), spec.split(second.observation.state)
    np.testing.assert_allclose(theirs[0], ours[0], atol=1e-6)
    np.testing.assert_allclose(theirs[1], ours[1], atol=1e-6)
    assert theirs[2] == pytest.approx(ours[2], abs=1e-6)


@pytest.mark.parametrize("spec", [ActionSpec(frame="tool"), ActionSpec(pace="servo"), ActionSpec(seconds=0.01)])
def test_actions_that_the_arm_cannot_carry_out_are_refused(spec):
    with pytest.raises(PolicyError, match="the simulated arm carries out key poses"):
        Environment("close_box", spec)
