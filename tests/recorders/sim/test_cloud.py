"""The sampled point cloud: what may be in it, and what its draw depends on."""

import numpy as np
import pytest

from recorders.sim.cloud import CROP_HIGH, CROP_LOW, POINTS, sample_cloud
from tracekit.errors import TraceError


@pytest.fixture
def sensed() -> np.ndarray:
    points = np.random.default_rng(0).uniform(-1.5, 1.5, (60, 50, 3)).astype(np.float32)
    points[0] = np.nan
    return points


def test_points_are_sensor_points_of_the_working_space_without_repetition(sensed):
    line = np.float32(0.3) + np.arange(3000, dtype=np.float32).reshape(60, 50, 1) * np.float32(1e-5)
    sensed = np.concatenate([sensed, np.repeat(line, 3, axis=2)])
    cloud = sample_cloud(sensed, 5, 0)
    assert cloud.shape == (POINTS, 3)
    assert cloud.dtype == np.float32
    assert ((cloud > CROP_LOW) & (cloud < CROP_HIGH)).all()
    rows = {row.tobytes() for row in cloud}
    assert len(rows) == POINTS
    assert rows <= {row.tobytes() for row in sensed.reshape(-1, 3)}


def test_the_draw_depends_on_episode_and_step_alone(sensed):
    first = sample_cloud(sensed, 2**63 + 11, 3)
    np.random.default_rng(1).random(5)
    np.testing.assert_array_equal(first, sample_cloud(sensed, 2**63 + 11, 3))
    assert not np.array_equal(first, sample_cloud(sensed, 2**63 + 11, 4))
    assert not np.array_equal(first, sample_cloud(sensed, 2**63 + 12, 3))


def test_few_points_are_repeated_in_turn():
    points = np.array([[0.1, 0, 0.1], [0.2, 0, 0.1], [0.3, 0, 0.1], [9, 9, 9]], np.float32)
    cloud = sample_cloud(points, 1, 1)
    values, counts = np.unique(cloud, axis=0, return_counts=True)
    np.testing.assert_array_equal(values, points[:3])
    assert sorted(counts) == [341, 341, 342]


def test_every_point_is_drawn_about_equally_often():
    points = np.stack([np.linspace(0.1, 0.7, 2048), np.zeros(2048), np.full(2048, 0.2)], axis=1).astype(np.float32)
    taken = np.zeros(2048)
    for step in range(60):
        taken += np.isin(points[:, 0], sample_cloud(points, 99, step)[:, 0])
    assert taken.mean() == pytest.approx(30)
    assert taken.var() == pytest.approx(15, rel=0.25)  # binomial, one half of 60


def test_a_scene_without_points_is_refused():
    with pytest.raises(TraceError, match="no point inside the working space"):
        sample_cloud(np.full((4, 4, 3), np.nan, np.float32), 1, 1)
