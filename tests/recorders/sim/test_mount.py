"""How high the arm stands is in the points and not in the picture."""

import dataclasses

import numpy as np
import pytest

from recorders.sim import TASKS, Environment
from recorders.sim.scene import build_scene
from recorders.sim.sensor import FRONT, RayCamera
from recorders.sim.tasks import NARROW_TASKS, find_task
from recorders.sim.tasks.base import MOUNTS

every_task = pytest.mark.parametrize("task", TASKS)


def seen_shapes(scenario, seed):
    """(224, 224) names of the shapes that the camera sees of `scenario` in surroundings drawn from `seed`."""
    scene = build_scene(scenario, np.random.default_rng(seed))
    world = scene.world
    camera = RayCamera(world.model, FRONT, world.segmentation_classes(), scene.light, world.base)
    geoms, _, _ = camera._cast(world.data, camera._eye, camera._rays)
    names = np.array([*(world.model.geom(i).name for i in range(world.model.ngeom)), "nothing"])
    return names[geoms].reshape(FRONT.height, FRONT.width)


@every_task
def test_the_arm_stands_at_every_height_in_turn(task):
    environment, heights = Environment(task, sensor=False), []
    for seed in range(60):
        state = environment.reset(seed).state
        heights.append(environment.scenario.mount)
        np.testing.assert_allclose(environment.world.tool_point() - state[:3], [0, 0, heights[-1]], atol=1e-12)
    assert min(heights) >= MOUNTS[0]
    assert max(heights) <= MOUNTS[1]
    assert np.histogram(heights, 4, MOUNTS)[0].min() > 5


@pytest.mark.parametrize("task", NARROW_TASKS)
def test_the_arm_stands_at_one_height_in_narrow_scenes(task):
    environment = Environment(task, sensor=False)
    heights = []
    for seed in range(5):
        environment.reset(seed)
        heights.append(environment.scenario.mount)
    assert len(set(heights)) == 1


@pytest.mark.parametrize("seed", range(6))
def test_a_tables_edges_are_seen_at_the_same_place_whatever_its_height(seed):
    scenario = find_task("banana_on_plate")(np.random.default_rng(0))
    low, high = (seen_shapes(dataclasses.replace(scenario, mount=mount), seed) == "floor" for mount in MOUNTS)
    assert low.sum() > 1000
    assert (low != high).mean() < 0.002
    other = seen_shapes(dataclasses.replace(scenario, mount=MOUNTS[0]), seed + 100) == "floor"
    assert (low != other).mean() > 0.01


@pytest.mark.parametrize("mount", MOUNTS)
def test_where_the_stand_meets_the_table_is_not_seen(mount):
    scenario = dataclasses.replace(find_task("sweep_to_dustpan")(np.random.default_rng(0)), mount=mount)
    shapes = seen_shapes(scenario, 0)
    assert (shapes == "deck").any()
    assert not np.isin(shapes, ["left_post", "right_post"]).any()
