"""A step depends on what it is given and on nothing else: not on order, process, threads or randomness."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tracekit
from tests.small import make_config, make_draws
from tests.tracekit.engine.support import UID, digest_of, first_observations, run
from tracekit.engine import Controller, StepDraws, execution_threads
from tracekit.errors import PolicyError
from tracekit.philox import action_noise, fps_starts


@pytest.fixture(scope="module")
def observations():
    return first_observations(3)


@pytest.fixture(scope="module")
def observation(observations):
    return observations[0]


def test_order_and_neighbours_do_not_matter(small_policy, observations):
    config = make_config("tri_stage", "prefix_kv", background_rate=0.5)
    alone = [digest_of(run(small_policy, config, observations, uid)) for uid in (5, 6)]
    backwards = [digest_of(run(small_policy, config, observations, uid)) for uid in (6, 5)]
    assert alone == backwards[::-1]
    assert alone[0] != alone[1]
    one, other = Controller(small_policy, config), Controller(small_policy, make_config("naive"))
    one.reset(5)
    other.reset(6)
    interleaved = []
    for observation in observations:
        interleaved.append(one.step(observation))
        other.step(observation)
        torch.rand(3)
        np.random.rand(3)  # noqa: NPY002  (global random states are what must not matter)
    assert digest_of(interleaved) == alone[0]


SCRIPT = """
import torch
torch.set_num_threads(1)
from tests.small import make_config, make_policy
from tests.tracekit.engine.support import digest_of, first_observations, run
torch.manual_seed(1234)
print(digest_of(run(make_policy(), make_config("tri_stage", "prefix_kv"), first_observations(2))))
"""


def test_another_process_gives_the_same_bits(small_policy, observations):
    here = digest_of(run(small_policy, make_config("tri_stage", "prefix_kv"), observations[:2]))
    root = Path(tracekit.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "3"},
    )
    assert done.stdout.strip() == here


def test_the_draws_are_those_of_philox_and_are_the_only_randomness(small_policy, observation):
    (result,) = run(small_policy, make_config(), [observation])
    draws = make_draws(small_policy, observation)
    np.testing.assert_array_equal(draws.noise, action_noise(UID, 1, (2, 10)))
    np.testing.assert_array_equal(draws.fps_starts, fps_starts(UID, 1, small_policy.passes, (1024, 512)))
    controller = Controller(small_policy, make_config())
    controller.reset(UID + 1)  # other draws would come of themselves
    np.testing.assert_array_equal(controller.step(observation, draws).samples, result.samples)
    other = StepDraws(draws.noise + 1, draws.fps_starts)
    assert not np.array_equal(controller.step(observation, other).samples, result.samples)


def test_a_step_does_not_change_its_draws(small_policy, observation):
    draws = make_draws(small_policy, observation)
    noise = draws.noise.copy()
    controller = Controller(small_policy, make_config())
    controller.reset(UID)
    controller.step(observation, draws)
    np.testing.assert_array_equal(draws.noise, noise)


def test_the_controller_computes_with_the_threads_of_its_configuration(small_policy, observation, monkeypatch):
    """The thread count is part of every bitwise claim, so it cannot depend on who calls."""
    seen = []

    def spy(tokens, starts):
        seen.append(torch.get_num_threads())
        return type(small_policy).embed_prefix(small_policy, tokens, starts)

    monkeypatch.setattr(small_policy, "embed_prefix", spy, raising=False)
    config = make_config("none", "prefix_kv")
    run(small_policy, replace(config, execution=replace(config.execution, threads=2)), [observation])
    assert seen == [2]
    assert torch.get_num_threads() == 1


def test_threads_are_put_back_after_an_error(small_policy, observation):
    config = make_config()
    config = replace(config, execution=replace(config.execution, threads=2))
    with execution_threads(config.execution):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 1
    with pytest.raises(PolicyError):
        run(small_policy, config, [replace(observation, points=None)])
    assert torch.get_num_threads() == 1
