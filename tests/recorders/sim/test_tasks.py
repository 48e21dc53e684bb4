"""What scenes of every task guarantee: twins, colours, instructions, visibility, and success about the target."""

import dataclasses
import itertools
import re

import numpy as np
import pytest

from recorders.sim import TASKS, Environment, Expert, expert_success
from recorders.sim.expert import expert_episode
from recorders.sim.palette import PALETTE
from recorders.sim.sensor import SegmentationClass
from recorders.sim.tasks import NARROW_TASKS
from recorders.sim.tasks.base import WIDEST_AZIMUTH
from tracekit.errors import ConfigError

TARGET, TWIN = "target", "other_twin"
CORNERS = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))

every_task = pytest.mark.parametrize("task", TASKS)


def geoms_of(world, root):
    """Ids of the shapes in the tree below root body `root`."""
    model = world.model
    return np.flatnonzero(model.body_rootid[model.geom_bodyid] == model.body(root).id)


def shape_of(world, root):
    """Everything about an object but its place, its joints' positions and its colour."""
    model, geoms = world.model, geoms_of(world, root)
    bodies = model.geom_bodyid[geoms]
    moved = bodies - model.body(root).id > 0
    return [
        model.geom_type[geoms],
        model.geom_size[geoms],
        model.geom_pos[geoms],
        model.geom_quat[geoms],
        model.geom_friction[geoms],
        model.body_mass[bodies],
        np.where(moved[:, None], model.body_pos[bodies], 0),
        bodies - model.body(root).id,
    ]


def corners_of(world, root):
    """(8 n, 3) corners of the bounding boxes of an object's shapes, base frame."""
    model, data = world.model, world.data
    points = []
    for geom in geoms_of(world, root):
        centre, half = model.geom_aabb[geom][:3], model.geom_aabb[geom][3:]
        points.append(data.geom_xpos[geom] + (centre + CORNERS * half) @ data.geom_xmat[geom].reshape(3, 3).T)
    return np.concatenate(points) - world.base


def test_an_unknown_task_is_refused_with_the_nearest_names():
    with pytest.raises(ConfigError, match=r"unknown simulator task 'close_boks'.*close_box"):
        Environment("close_boks")


@every_task
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_target_and_twin_differ_by_colour_alone(task, seed):
    environment = Environment(task, sensor=False)
    environment.reset(seed)
    world = environment.world
    for target, twin in zip(shape_of(world, TARGET), shape_of(world, TWIN), strict=True):
        np.testing.assert_array_equal(target, twin)
    colours = world.model.geom_rgba[geoms_of(world, TARGET)], world.model.geom_rgba[geoms_of(world, TWIN)]
    assert not np.array_equal(*colours)


@every_task
def test_the_instruction_names_the_targets_colour_and_varies(task):
    environment = Environment(task, sensor=False)
    sentences, colours = set(), set()
    for seed in range(40):
        observation = environment.reset(seed)
        named = [word for word in re.findall(r"[a-z]+", environment.instruction) if word in PALETTE]
        assert named == [environment.scenario.colours[0]]
        assert observation.instruction == environment.instruction
        sentences.add(environment.instruction.replace(named[0], "{}"))
        colours.add(named[0])
    assert 3 <= len(sentences) <= 6
    assert len(colours) >= 4


@every_task
def test_objects_stand_on_both_sides_in_the_sector_and_inside_the_picture(task):
    environment = Environment(task, sensor=False)
    camera = environment.camera
    left, azimuths = 0, []
    for seed in range(200):
        environment.reset(seed)
        world = environment.world
        sides = []
        for root in (TARGET, TWIN):
            x, y, _ = world.position(root)
            sides.append(np.sign(y))
            azimuths.append(np.arctan2(y, x))
            local = (corners_of(world, root) - camera.translation) @ np.array(camera.rotation)
            pixels = local[:, :2] / local[:, 2:] * [camera.fx, camera.fy] + [camera.cx, camera.cy]
            assert pixels.min() > 1, (seed, root)
            assert pixels.max() < camera.width - 1, (seed, root)
        assert sides[0] == -sides[1]
        left += sides[0] > 0
        assert not overlapping(corners_of(world, TARGET), corners_of(world, TWIN)), seed
    assert 70 <= left <= 130
    assert np.abs(azimuths).max() <= WIDEST_AZIMUTH
    assert np.ptp(azimuths) > 1.5


@pytest.mark.parametrize("task", NARROW_TASKS)
def test_narrow_scenes_need_no_eyes(task):
    environment = Environment(task, sensor=False)
    places, yaws, sizes = [], [], []
    for seed in range(200):
        environment.reset(seed)
        world = environment.world
        places.append(world.position(TARGET)[:2])
        x_axis = world.rotation(TARGET)[:, 0]
        yaws.append(np.arctan2(x_axis[1], x_axis[0]))
        sizes.append((environment.scenario.size, environment.scenario.mount))
    spread = np.ptp(places, axis=0)
    assert np.all(spread <= (0.04, 0.12))
    assert np.all(spread > (0.035, 0.11))
    assert 0.45 < np.ptp(yaws) <= 0.49
    assert np.all(np.array(places)[:, 1] > 0)
    assert len(set(sizes)) == 1
    assert task not in TASKS
    assert expert_success(task, range(20)) == 1.0


def overlapping(first, second):
    """Whether two objects' horizontal extents overlap across the line between their middles."""
    direction = (second.mean(0) - first.mean(0))[:2]
    return (first[:, :2] @ direction).max() > (second[:, :2] @ direction).min()


@every_task
def test_named_colours_are_told_apart_in_the_picture(task):
    environment = Environment(task)
    names = sorted(PALETTE)
    hues = np.array([PALETTE[name] for name in names])
    hues = hues / np.linalg.norm(hues, axis=1, keepdims=True)
    for seed in range(12):
        observation = environment.reset(seed)
        world = environment.world
        for root, name in zip((TARGET, TWIN), environment.scenario.colours, strict=True):
            low, high = corners_of(world, root).min(0) - 1e-3, corners_of(world, root).max(0) + 1e-3
            points = observation.depth["front"][..., None] * rays(environment.camera) + environment.camera.translation
            inside = ((points > low) & (points < high)).all(-1)
            wanted = SegmentationClass.TARGET if root == TARGET else SegmentationClass.OTHER
            pixels = observation.images["front"][inside & (observation.segmentation["front"] == wanted)].astype(float)
            assert len(pixels) > 100
            mean = pixels.mean(0) / np.linalg.norm(pixels.mean(0))
            assert names[int(np.argmax(hues @ mean))] == name, seed


def rays(camera):
    v, u = np.mgrid[: camera.height, : camera.width] + 0.5
    local = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones_like(u)], -1)
    return local @ np.array(camera.rotation).T


@every_task
def test_the_expert_solves_the_task(task):
    assert expert_success(task, range(6)) == 1.0


@pytest.mark.slow
@every_task
def test_the_expert_solves_fifty_seeds_at_key_pose_pace(task):
    environment = Environment(task, sensor=False)
    episodes = [expert_episode(environment, seed) for seed in range(1000, 1050)]
    assert np.mean([episode.success for episode in episodes]) >= 0.95
    assert np.mean([6 <= episode.key_poses <= 14 for episode in episodes]) >= 0.9


@every_task
@pytest.mark.parametrize("seed", [3, 4])
def test_doing_it_to_the_twin_is_no_success(task, seed):
    environment = Environment(task, sensor=False)
    environment.reset(seed)
    asked = environment.scenario
    mistaken = dataclasses.replace(asked, target=asked.twin, twin=asked.target)
    solved_the_twin = False
    for _ in range(environment.max_steps):
        tool, goal = environment.world.tool_point(), mistaken.next_pose(environment.world)
        offset = (goal.point - tool) * min(1.0, 0.09 / max(np.linalg.norm(goal.point - tool), 1e-9))
        outcome = environment.step(np.r_[offset, goal.frame[:, 0], goal.frame[:, 2], float(goal.open)])
        assert not outcome.success
        solved_the_twin = solved_the_twin or mistaken.solved(environment.world)
    assert outcome.done
    assert solved_the_twin


@every_task
def test_the_expert_finds_back_after_being_pushed_off_course(task):
    environment = Environment(task, sensor=False)
    solved = 0
    for seed in range(6):
        environment.reset(seed)
        environment.max_steps = 24
        expert, rng = Expert(environment), np.random.default_rng(seed)
        while True:
            action = expert.act()
            if environment.steps in (2, 5):
                action[:3] += rng.normal(0, 0.03, 3)
            outcome = environment.step(action)
            if outcome.done:
                break
        solved += outcome.success
    assert solved >= 5


@pytest.mark.parametrize("task", ["banana_on_plate", "sweep_to_dustpan"])
def test_loose_items_start_away_from_target_and_twin(task):
    environment = Environment(task, sensor=False)
    for seed in range(100):
        environment.reset(seed)
        world = environment.world
        assert not environment.scenario.solved(world)
        assert np.hypot(*world.position("target_item")[:2]) < 0.5
        for root in (TARGET, TWIN):
            assert np.linalg.norm((world.position("target_item") - world.position(root))[:2]) > 0.15
            assert not world.touching("target_item", root), (seed, root)


def test_the_banana_is_held_by_friction_alone():
    environment = Environment("banana_on_plate", sensor=False)
    environment.reset(0)
    assert environment.world.model.neq == 1  # the gears of the jaws
    environment.world.model.geom_friction[:, 0] = 1e-3
    expert, heights = Expert(environment), []
    while True:
        outcome = environment.step(expert.act())
        heights.append(environment.world.position("target_item")[2])
        if outcome.done:
            break
    assert not outcome.success
    assert np.minimum(heights[:-1], heights[1:]).max() < 0.03  # it may pop up between the jaws, but it falls


@every_task
def test_phases_follow_each_other(task):
    environment = Environment(task, sensor=False)
    environment.reset(5)
    expert, phases = Expert(environment), [environment.phase]
    while True:
        outcome = environment.step(expert.act())
        phases.append(outcome.phase)
        if outcome.done:
            break
    distinct = [phase for phase, before in zip(phases, [None, *phases], strict=False) if phase != before]
    if task == "banana_on_plate":
        assert distinct == ["reach", "grasp", "carry", "placed"]
    else:
        assert distinct == ["reach", "push", "swept" if task == "sweep_to_dustpan" else "closed"]


@every_task
def test_standing_still_never_succeeds_and_random_motion_hardly_ever(task):
    environment = Environment(task, sensor=False)
    for seed in range(2):
        state = environment.reset(seed).state
        while True:
            outcome = environment.step(np.r_[0, 0, 0, state[3:9], 0])
            if outcome.done:
                break
        assert not outcome.success
    lucky = 0
    for seed in range(6):
        environment.reset(seed)
        rng = np.random.default_rng(seed)
        while True:
            outcome = environment.step(np.r_[rng.normal(0, 0.08, 3), rng.normal(0, 1, 6), rng.random()])
            if outcome.done:
                break
        lucky += outcome.success
    assert lucky <= 1
