"""A policy may hand out the same cache again: rows that the writer's thread rebuilds are those of their own step."""

import threading

import numpy as np
import pytest
import torch

from recorders import Recorder
from recorders.sim import Environment
from tests.small import make_config, make_policy
from tracekit import keys
from tracekit.capture import CaptureSpec
from tracekit.engine import Controller, StepOptions
from tracekit.engine.result import unread
from tracekit.model.backbone import KVCache
from tracekit.store import EpisodeWriter, Trace

CAPACITY = 700
ROWS = (keys.ATTENTION, keys.ATTENTION_ACTION, keys.LAST_ROW, keys.QK_TEXT_LAYER0, keys.norms("prenorm"))


@pytest.fixture(scope="module")
def observations():
    environment = Environment("close_box")
    seen = [environment.reset(7)]
    for _ in range(3):
        seen.append(environment.step(np.r_[0.05, 0, -0.05, seen[0].state[3:9], 0.0]).observation)
    return seen


def room(policy):
    config = policy.config
    return KVCache(
        config.layers, config.kv_heads, CAPACITY, config.hidden_size // config.heads, torch.float32, policy.device
    )


def one_cache(policy):
    """The same object at every call."""
    cache = room(policy)

    def new_cache(_capacity):
        cache.forget(cache.length)
        return cache

    return new_cache


def one_buffer(policy):
    """Another object at every call, around the same buffers, which it wipes at once."""
    buffers = room(policy)

    def new_cache(_capacity):
        cache = KVCache(policy.config.layers, 1, 0, 1, torch.float32, policy.device)
        for own, shared in zip(cache.layers, buffers.layers, strict=True):
            own._keys, own._values = shared._keys.fill_(torch.nan), shared._values.fill_(torch.nan)
        return cache

    return new_cache


def two_buffers(policy):
    """Two caches in turn."""
    caches = [one_buffer(policy), one_buffer(policy)]

    def new_cache(capacity):
        caches.reverse()
        return caches[0](capacity)

    return new_cache


def recorded(path, policy, observations, monkeypatch):
    """Recorded while the writer is held at the first step, so that the others wait for it with their rows unread."""
    append, release = EpisodeWriter.append, threading.Event()

    def held(writer, step):
        assert release.wait(30)
        append(writer, step)

    monkeypatch.setattr(EpisodeWriter, "append", held)
    controller = Controller(policy, make_config("none", "prefix_kv"))
    with (
        Recorder(path, controller) as recorder,
        recorder.episode("close_box", observations[0].instruction, uid=5, episode_id="e") as episode,
    ):
        for observation in observations:
            with episode.step(observation) as step:
                step.action = controller.act(observation)
        release.set()
    monkeypatch.undo()
    return Trace.open(path).episode("e")


@pytest.mark.parametrize("reused", [one_cache, one_buffer, two_buffers])
def test_a_policy_that_reuses_its_cache_is_recorded_as_one_that_does_not(tmp_path, observations, monkeypatch, reused):
    expected = recorded(tmp_path / "fresh", make_policy(), observations, monkeypatch)
    policy = make_policy()
    policy.new_cache = reused(policy)
    found = recorded(tmp_path / "reused", policy, observations, monkeypatch)
    assert not unread(policy)
    for key in ROWS:
        np.testing.assert_array_equal(found.read(key), expected.read(key), err_msg=key)
    assert np.unique(expected.read(keys.ATTENTION), axis=0).shape[0] == len(observations)


def test_what_another_controller_left_unread_is_read_before_the_cache_is_used_again(observations):
    policy = make_policy()
    policy.new_cache = one_buffer(policy)
    config, capture = make_config("none", "prefix_kv"), StepOptions(CaptureSpec.default())
    first = Controller(policy, config, capture)
    first.reset(5)
    result = first.step(observations[0])
    expected = Controller(make_policy(), config, capture)
    expected.reset(5)
    at_once = expected.step(observations[0]).observables.attention.tobytes()
    other = Controller(policy, config)
    other.reset(6)
    other.step(observations[1])
    assert result.observables.attention.tobytes() == at_once


def test_what_nobody_can_ask_for_any_more_costs_the_next_step_nothing(observations):
    policy = make_policy()
    controller = Controller(policy, make_config("none", "prefix_kv"), StepOptions(CaptureSpec.default()))
    controller.reset(5)
    controller.step(observations[0])
    assert len(unread(policy)) == 1
    controller.reset(5)
    assert not unread(policy)
