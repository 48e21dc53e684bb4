"""The environment as a policy and a recorder meet it."""

import functools
import hashlib
import importlib
import inspect
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import recorders.sim
from recorders.sim import TASKS, Environment, Expert, _headless, episode_uid
from recorders.sim.controller import LONGEST_MOVE
from recorders.sim.geometry import rotation_between
from recorders.sim.sensor import SegmentationClass
from tracekit.errors import ConfigError, PolicyError

REPOSITORY = str(Path(recorders.sim.__file__).parents[2])


def digest(task, seed, key_poses):
    """SHA-256 over everything that an episode's first key poses show and do, time stamps apart."""
    environment = Environment(task)
    observation = environment.reset(seed)
    expert, total = Expert(environment), hashlib.sha256()
    for _ in range(key_poses):
        action = expert.act()
        outcome = environment.step(action)
        pictures = (observation.images, observation.depth, observation.segmentation)
        for value in (*(picture["front"] for picture in pictures), observation.points, observation.state, action):
            total.update(np.ascontiguousarray(value).tobytes())
        total.update(f"{observation.instruction} {outcome.success} {outcome.done} {outcome.phase}".encode())
        observation = outcome.observation
    return total.hexdigest()


def run_python(script, **variables):
    """What `script` prints in a fresh interpreter."""
    surroundings = {key: value for key, value in os.environ.items() if key != "MUJOCO_GL"}
    surroundings.update(PYTHONPATH=REPOSITORY, **variables)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=surroundings, check=True)
    return done.stdout.strip()


def test_a_seed_gives_bitwise_the_same_episode_in_another_process_without_any_graphics_library():
    here = [digest(task, 7, 3) for task in TASKS]
    imports = "import hashlib, os, sys\nimport numpy as np\nfrom recorders.sim import Environment, Expert\n"
    graphics = "[name for name in sys.modules if name.split('.')[0] in ('OpenGL', 'glfw')]"
    script = (
        f"{imports}\n{inspect.getsource(digest)}\nfor task in {TASKS!r}:\n    print(digest(task, 7, 3))\n"
        f"print(os.environ['MUJOCO_GL'], len({graphics}))"
    )
    assert run_python(script, PYTHONHASHSEED="12").split() == [*here, "disable", "0"]


def test_a_graphics_backend_chosen_by_the_user_is_left_alone(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert importlib.reload(_headless).MUJOCO_GL == "osmesa"
    monkeypatch.delenv("MUJOCO_GL")
    assert importlib.reload(_headless).MUJOCO_GL == "disable"


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_gives_the_same_episode_twice_whatever_the_global_random_state(task):
    np.random.seed(1)  # noqa: NPY002  (the global state is what must not matter)
    here = digest(task, 7, 2)
    np.random.seed(2)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert digest(task, 7, 2) == here
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert digest(task, 8, 1) != digest(task, 7, 1)


def test_observations_have_the_documented_shapes_and_types():
    environment = Environment("close_box")
    observation = environment.reset(3)
    assert list(observation.images) == ["front"]
    assert observation.images["front"].shape == (224, 224, 3)
    assert observation.images["front"].dtype == np.uint8
    assert observation.points.shape == (1024, 3)
    assert observation.points.dtype == np.float32
    assert observation.state.shape == (environment.action_spec.size,)
    assert observation.state.dtype == np.float64
    assert observation.depth["front"].dtype == np.float32
    assert observation.segmentation["front"].dtype == np.uint8
    assert set(np.unique(observation.segmentation["front"])) == {0, 1, 2, 3}
    assert observation.cameras["front"] == environment.camera
    assert observation.time_ns["front"] >= observation.time_ns["state"] > 0


def test_without_the_sensor_the_same_motion_comes_out():
    with_sensor, without = Environment("close_laptop"), Environment("close_laptop", sensor=False)
    first, second = with_sensor.reset(5), without.reset(5)
    assert second.images == {}
    assert second.points is None
    np.testing.assert_array_equal(first.state, second.state)
    action = Expert(with_sensor).act()
    np.testing.assert_array_equal(action, Expert(without).act())
    np.testing.assert_array_equal(with_sensor.step(action).observation.state, without.step(action).observation.state)


@pytest.mark.parametrize("seed", range(3))
def test_cloud_points_lie_where_depth_segmentation_and_patches_say(seed):
    environment = Environment("close_fridge")
    observation = environment.reset(seed)
    camera, depth = environment.camera, observation.depth["front"]
    local = (observation.points.astype(float) - camera.translation) @ np.array(camera.rotation)
    u = camera.fx * local[:, 0] / local[:, 2] + camera.cx
    v = camera.fy * local[:, 1] / local[:, 2] + camera.cy
    np.testing.assert_allclose(u % 1, 0.5, atol=1e-3)  # rays pass through pixel centres
    np.testing.assert_allclose(v % 1, 0.5, atol=1e-3)
    column, row = u.astype(int), v.astype(int)
    np.testing.assert_allclose(depth[row, column], local[:, 2], atol=1e-5)
    np.testing.assert_array_equal(camera.patches(observation.points), row // 14 * 16 + column // 14)
    # base frame: what is seen as the robot stands around the base, what is seen as background is the table top
    classes = observation.segmentation["front"][row, column]
    background = observation.points[classes == SegmentationClass.BACKGROUND]
    np.testing.assert_allclose(background[:, 2], -environment.scenario.mount, atol=1e-5)
    robot = observation.points[classes == SegmentationClass.ROBOT]
    assert (np.hypot(robot[:, 0], robot[:, 1]) < 0.45).all()
    target = observation.points[classes == SegmentationClass.TARGET]
    assert (
        np.linalg.norm(target - (environment.world.position("target") - environment.world.base), axis=1) < 0.45
    ).all()


def test_recoloured_objects_leave_the_cloud_untouched():
    environment = Environment("close_box")
    first = environment.reset(11)
    environment._running.camera._colours = environment._running.camera._colours[:, ::-1] * np.float32(0.5)
    second = environment._observe()
    assert not np.array_equal(first.images["front"], second.images["front"])
    np.testing.assert_array_equal(first.points, second.points)


def test_an_action_moves_the_tool_by_its_offset_in_the_base_frame():
    environment = Environment("close_box", sensor=False)
    state = environment.reset(2).state
    offset = np.array([0.03, -0.04, 0.02])
    after = environment.step(np.r_[offset, state[3:9], 0.0]).observation.state
    np.testing.assert_allclose(after[:3] - state[:3], offset, atol=0.008)
    assert after[9] < 0.1
    after = environment.step(np.r_[0, 0, 0, after[3:9], 1.0]).observation.state
    assert after[9] > 0.8


def test_a_long_action_is_shortened_along_its_direction():
    environment = Environment("close_box", sensor=False)
    moved = []
    for length in (LONGEST_MOVE, 5.0):
        state = environment.reset(2).state
        moved.append(environment.step(np.r_[0, 0, -length, state[3:9], 0.0]).observation.state[:3] - state[:3])
    np.testing.assert_allclose(moved[0], moved[1], atol=1e-9)
    np.testing.assert_allclose(moved[0], [0, 0, -LONGEST_MOVE], atol=0.03)


def test_rotation_is_absolute():
    environment = Environment("close_box", sensor=False)
    state = environment.reset(2).state
    angle = 0.3
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    goal = turn @ environment.world.tool_frame()
    for _ in range(2):
        environment.step(np.r_[0, 0, 0, goal[:, 0], goal[:, 2], 0.0])
    assert np.linalg.norm(rotation_between(environment.world.tool_frame(), goal)) < 0.1
    np.testing.assert_allclose(environment.world.tool_point() - environment.world.base, state[:3], atol=0.01)


def test_expert_and_policy_act_through_the_same_door():
    environment = Environment("close_box", sensor=False)
    environment.reset(0)
    expert, actions, phases = Expert(environment), [], [environment.phase]
    while True:
        actions.append(expert.act())
        outcome = environment.step(actions[-1])
        phases.append(outcome.phase)
        if outcome.done:
            break
    assert outcome.success
    assert phases[0] == "reach"
    assert "push" in phases
    assert phases[-1] == "closed"
    assert 5 <= len(actions) <= environment.max_steps == 16
    environment.reset(0)
    for action in actions:  # replayed blindly, the recorded actions do the same
        replayed = environment.step(action)
    assert replayed.success


def test_the_episode_ends_after_max_steps():
    environment = Environment("close_box", sensor=False)
    state = environment.reset(1).state
    for step in range(1, environment.max_steps + 1):
        outcome = environment.step(np.r_[0, 0, 0, state[3:9], 0])
        assert outcome.done == (step == environment.max_steps)
    assert not outcome.success
    with pytest.raises(ConfigError, match=r"is over; call reset\(seed\)"):
        environment.step(np.r_[0, 0, 0, state[3:9], 0])


def test_unusable_input_is_refused_in_one_line():
    environment = Environment("close_box", sensor=False)
    with pytest.raises(ConfigError, match="no running episode"):
        environment.step(np.zeros(10))
    with pytest.raises(ConfigError, match="non-negative"):
        environment.reset(-1)
    environment.reset(0)
    with pytest.raises(PolicyError, match="not finite"):
        environment.step(np.full(10, np.nan))
    with pytest.raises(PolicyError, match="shape"):
        environment.step(np.zeros(7))
    assert environment.steps == 0


def test_episode_uids_follow_the_stored_rule():
    assert episode_uid("close_box", 7) == int(hashlib.sha256(b"sim:close_box:7").hexdigest()[:16], 16)
    environment = Environment("close_box", sensor=False)
    environment.reset(7)
    assert environment.episode_uid == episode_uid("close_box", 7)
    assert environment.seed == 7
    assert environment.version()["mujoco"]


def test_a_task_is_solved_when_it_has_been_for_eight_ticks_in_a_row(monkeypatch):
    environment = Environment("close_box", sensor=False)
    for most, success in ((7, False), (8, True)):
        state, ticks = environment.reset(1).state, itertools.count()
        solved = functools.partial(lambda ticks, most, _world: next(ticks) % (most + 1) < most, ticks, most)
        monkeypatch.setattr(type(environment.scenario), "solved", lambda _self, world, solved=solved: solved(world))
        outcomes = [environment.step(np.r_[0, 0, 0, state[3:9], 0])]
        while not outcomes[-1].done:
            outcomes.append(environment.step(np.r_[0, 0, 0, state[3:9], 0]))
        assert next(ticks) > 8
        assert outcomes[-1].success == success
