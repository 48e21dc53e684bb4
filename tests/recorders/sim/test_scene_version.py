"""A seed keeps its scene for as long as SCENE_VERSION stands: recordings, demonstrations and results rely on it."""

import hashlib

import numpy as np
import pytest

from recorders.sim import TASKS, Environment
from recorders.sim.environment import SCENE_VERSION
from recorders.sim.tasks import NARROW_TASKS

SCENES = {
    "banana_on_plate": "62bbaf531b3b2b2495472d07e4ef3e29",
    "close_box": "2c392c75e9d9fd56535a7e5283f055f8",
    "close_fridge": "edef95c20e220a6525fd2510b2eaea0b",
    "close_laptop": "4a1eaf6fe75adb7c9faf9009a6737918",
    "sweep_to_dustpan": "b841436140bad637ed1a818ddb23732e",
    "close_box_narrow": "274027afd28fde2c6646d493aad6e5c6",
    "close_fridge_narrow": "e1dc321cd1b5cd5cf6d60f7daefa86ee",
    "close_laptop_narrow": "42ef1697002f830b01e95ab13b2a3da6",
}
"""First half of the SHA-256 of the scenes of seeds 0 to 4."""

COMPILED = (
    "geom_type",
    "geom_size",
    "geom_pos",
    "geom_quat",
    "geom_rgba",
    "geom_friction",
    "geom_priority",
    "body_pos",
    "body_quat",
    "body_mass",
    "dof_frictionloss",
    "light_pos",
)


def scenes_of(task):
    """Digest of what is compiled and how it starts, to 0.1 mm."""
    environment, digest = Environment(task, sensor=False), hashlib.sha256()
    for seed in range(5):
        environment.reset(seed)
        world = environment.world
        for name in COMPILED:
            digest.update(np.ascontiguousarray(np.round(getattr(world.model, name), 4) + 0.0, np.float64).tobytes())
        digest.update((np.round(world.data.qpos, 4) + 0.0).tobytes())
        digest.update(environment.instruction.encode())
    return digest.hexdigest()[:32]


@pytest.mark.parametrize("task", [*TASKS, *NARROW_TASKS])
def test_scenes_are_those_of_their_version(task):
    assert SCENE_VERSION == 4
    assert scenes_of(task) == SCENES[task], "these are other scenes: count SCENE_VERSION up, and put new digests here"
