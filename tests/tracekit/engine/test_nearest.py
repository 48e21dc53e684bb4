"""Correspondence `nearest` in a forward pass: every point token has a patch, in every pass its own."""

from dataclasses import replace

import numpy as np
import pytest

from recorders.sim import Environment
from replay import Replay
from tests.small import make_config
from tracekit.config import Configuration
from tracekit.engine import Controller
from tracekit.errors import TraceError
from tracekit.pruning.points import nearest_patches

OPTIONS = {"reduction": {"correspondence": "nearest"}, "tau_2d": 0.3, "tau_3d": 0.5, "background_rate": 0.5}


@pytest.fixture(scope="module")
def observations():
    """Two steps seen by a camera that looks at a part of the scene only: some points project nowhere."""
    environment = Environment("close_box")
    seen = environment.reset(7)
    view, camera = next(iter(seen.cameras.items()))
    narrow = replace(camera, fx=2.5 * camera.fx, fy=2.5 * camera.fy)
    return [replace(seen, cameras={view: narrow})] * 2, narrow


@pytest.mark.parametrize("reuse", ["none", "prefix_kv"])
def test_points_follow_the_nearest_patch(small_policy, observations, reuse):
    seen, camera = observations
    controller = Controller(small_policy, make_config("tri_stage", reuse, **OPTIONS))
    controller.reset(5)
    for observation in seen:
        result = controller.step(observation)
    before, nearest = result.observables.patch, result.observables.nearest_patch
    assert 10 < (before < 0).sum() < 246
    assert (nearest >= 0).all()
    np.testing.assert_array_equal(nearest[before >= 0], before[before >= 0])
    tokens = small_policy.tokenize(seen[0])
    starts = controller.last_draws.fps_starts
    decision = result.decision
    assert 0 < decision.keep_3d_patches.sum() < 256
    for step, kept in enumerate(result.kept[1:], 1):
        prefix = small_policy.embed_prefix(tokens, tuple(starts[0 if reuse == "prefix_kv" else step].tolist()))
        own = nearest_patches(prefix.centres.numpy(), prefix.alignment.patch, {0: camera})
        np.testing.assert_array_equal(kept[256:], decision.keep_3d_patches[own])
    assert sorted(prefix.cameras) == [0]


def test_a_lagged_run_observes_by_the_nearest_patch(small_policy, observations):
    table = make_config("tri_stage", **OPTIONS).to_json() | {"observe": {"mode": "lagged"}}
    controller = Controller(small_policy, Configuration.from_table(table, "lagged"))
    controller.reset(5)
    for observation in observations[0]:
        result = controller.step(observation)
    dropped = ~result.kept[0][256:]
    assert dropped.any()
    expected = result.kept[0][:256].copy()
    expected[result.observables.nearest_patch[dropped]] = False
    np.testing.assert_array_equal(controller.memory.observed, expected)


def test_a_replay_finds_the_nearest_patches(small_trace):
    config = make_config("tri_stage", **OPTIONS)
    result = Replay(small_trace).run(config)
    for step in result.episodes["tri_stage"][0].steps:
        assert (step.result.observables.nearest_patch >= 0).all()


def test_without_a_camera_it_is_refused_in_one_line(small_policy, observations):
    controller = Controller(small_policy, make_config("tri_stage", **OPTIONS))
    controller.reset(5)
    with pytest.raises(TraceError, match=r"no view has a camera.*correspondence = 'projection'"):
        controller.step(replace(observations[0][0], cameras={}))
