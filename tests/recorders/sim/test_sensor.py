"""The ray-cast sensor against intersections with planes and boxes worked out by hand."""

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recorders.sim import TASKS, Environment, Expert
from recorders.sim.sensor import FRONT, SIDE, Light, RayCamera, SegmentationClass
from recorders.sim.world import World

LIGHT = Light((0.4, -0.3, 1.5), 0.5, 0.4)


def rays_of_front() -> tuple[np.ndarray, np.ndarray]:
    """(origin, (SIDE, SIDE, 3) directions whose length along the optical axis is one), from the pinhole equations."""
    v, u = np.mgrid[:SIDE, :SIDE] + 0.5
    camera = np.stack([(u - FRONT.cx) / FRONT.fx, (v - FRONT.cy) / FRONT.fy, np.ones_like(u)], axis=-1)
    return np.array(FRONT.translation), camera @ np.array(FRONT.rotation).T


def ray_plane(origin, directions, height):
    """Depth along unit-axial rays to the plane z = height; infinite where the ray rises."""
    with np.errstate(divide="ignore"):
        depth = (height - origin[2]) / directions[..., 2]
    return np.where(depth > 0, depth, np.inf)


def ray_box(origin, directions, centre, rotation, half):
    """Depth to the first face of an oriented box (slab method), infinite where the ray misses it."""
    start, towards = (origin - centre) @ rotation, directions @ rotation
    with np.errstate(divide="ignore", invalid="ignore"):
        first, second = (-half - start) / towards, (half - start) / towards
    enter, leave = np.minimum(first, second).max(-1), np.maximum(first, second).min(-1)
    return np.where((enter <= leave) & (enter > 0), enter, np.inf)


def box_on_a_plane(centre, yaw, half):
    spec = mujoco.MjSpec()
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0.6, 0.6, 0.1], rgba=[0.5, 0.5, 0.5, 1])
    body = spec.worldbody.add_body(name="target_box", pos=centre, quat=[np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)])
    body.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, size=half, rgba=[1, 0, 0, 1])
    model = spec.compile()
    world = World(model, mujoco.MjData(model))
    mujoco.mj_forward(model, world.data)
    return world


@settings(max_examples=8, deadline=None)
@given(
    st.floats(0.2, 0.5),
    st.floats(-0.3, 0.3),
    st.floats(-3.0, 3.0),
    st.tuples(*[st.floats(0.03, 0.12)] * 3).map(np.array),
)
def test_depth_segmentation_and_points_agree_with_analytic_intersections(x, y, yaw, half):
    centre = np.array([x, y, half[2] + 0.02])
    world = box_on_a_plane(centre, yaw, half)
    reading = RayCamera(world.model, FRONT, world.segmentation_classes(), LIGHT).read(world.data)
    origin, directions = rays_of_front()
    plane = ray_plane(origin, directions, 0.0)
    on_plane = np.abs(origin[:2] + plane[..., None] * directions[..., :2]).max(-1) < 0.6
    plane = np.where(on_plane, plane, np.inf)
    rotation = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    box = ray_box(origin, directions, centre, rotation, half)
    depth = np.minimum(plane, box)
    hit = np.isfinite(depth)
    # a ray along an edge may be told either way: leave pixels out whose neighbours differ
    seen = reading.segmentation == SegmentationClass.TARGET
    assert np.count_nonzero(seen != (box < plane)) <= 4
    clear = (seen == (box < plane)) & ((reading.depth > 0) == hit)
    np.testing.assert_allclose(reading.depth[clear & hit], depth[clear & hit], atol=1e-5)
    assert (reading.depth[clear & ~hit] == 0).all()
    points = origin + depth[..., None] * directions
    np.testing.assert_allclose(reading.points[clear & hit], points[clear & hit], atol=1e-5)
    assert np.isnan(reading.points[clear & ~hit]).all()


@pytest.mark.parametrize("task", TASKS)
def test_the_batched_caster_misses_nothing_that_single_rays_meet(task):
    environment = Environment(task)
    environment.reset(1)
    expert, rng = Expert(environment), np.random.default_rng(0)
    for _ in range(5):
        environment.step(expert.act())
    camera, world = environment._running.camera, environment.world
    robot = environment._observe().segmentation["front"].reshape(-1) == SegmentationClass.ROBOT
    chosen = np.union1d(np.flatnonzero(robot), rng.choice(SIDE * SIDE, 1500))
    for origin in (camera._eye, np.array(camera._light.position)):
        rays = np.ascontiguousarray(camera._rays)
        if origin is not camera._eye:
            towards = camera.read(world.data).points.reshape(-1, 3).astype(float) - origin
            rays = np.nan_to_num(towards / np.linalg.norm(towards, axis=1, keepdims=True), nan=0.577)
        geoms, distance, _ = camera._cast(world.data, origin, rays)
        for index in chosen:
            geom = np.full(1, -1, np.int32)
            groups = np.array([1, 1, 1, 1, 1, 0], np.uint8)
            single = mujoco.mj_ray(world.model, world.data, origin, rays[index], groups, True, -1, geom, None)
            assert geom[0] == geoms[index]
            assert single == pytest.approx(distance[index])


def test_a_box_casts_its_shadow_away_from_the_lamp():
    centre, half = np.array([0.3, 0.0, 0.10]), np.array([0.05, 0.05, 0.10])
    world = box_on_a_plane(centre, 0.0, half)
    lamp = Light((0.3, -1.0, 1.0), 0.6, 0.3)
    reading = RayCamera(world.model, FRONT, world.segmentation_classes(), lamp).read(world.data)
    ground = (reading.segmentation == SegmentationClass.BACKGROUND) & (reading.depth > 0)
    points = reading.points
    # the box's top edge at y = 0.05, z = 0.2 shades the table up to y = 0.05 + 0.2 * 1.05 / 0.8 = 0.3125
    inside = ground & (np.abs(points[..., 0] - 0.3) < 0.04)
    shaded = inside & (points[..., 1] > 0.07) & (points[..., 1] < 0.30)
    lit = inside & (points[..., 1] > 0.33) & (points[..., 1] < 0.50)
    assert shaded.sum() > 50
    assert lit.sum() > 50
    assert reading.rgb[shaded].max() < reading.rgb[lit].min()


def test_the_front_camera_is_upright_and_looks_back_at_the_base():
    right, down, forward = np.array(FRONT.rotation).T
    np.testing.assert_allclose(np.array(FRONT.rotation).T @ np.array(FRONT.rotation), np.eye(3), atol=1e-12)
    np.testing.assert_allclose(np.cross(right, down), forward, atol=1e-12)
    assert forward[0] < 0
    assert down[2] < 0
    assert right[2] == 0
