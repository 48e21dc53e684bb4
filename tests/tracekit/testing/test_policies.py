"""The test kit passes the policies that ship, and catches each way of breaking the protocol."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from recorders.sim import Environment
from tests.recorders.test_reused_cache import one_buffer, one_cache
from tests.small import make_policy
from tracekit.model.backbone import Attention, KVCache
from tracekit.testing import check_policy


@pytest.fixture(scope="module")
def observations():
    environment = Environment("close_box")
    first = environment.reset(7)
    return [first, environment.step(np.r_[0.05, 0, -0.05, first.state[3:9], 0.0]).observation]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_our_own_policy_keeps_the_protocol(observations, dtype):
    check_policy(make_policy(dtype=dtype), observations)


@pytest.mark.parametrize("reused", [one_cache, one_buffer])
def test_a_cache_may_be_handed_out_again(observations, reused):
    policy = make_policy()
    policy.new_cache = reused(policy)
    check_policy(policy, observations)


def into_one_buffer(policy, name):
    """The call `name` of `policy`, which returns the same tensor every time."""
    original, buffers = getattr(policy, name), {}

    def call(*args, **kwargs):
        found = original(*args, **kwargs)
        return buffers.setdefault(found.shape, torch.empty_like(found)).copy_(found)

    return call


@pytest.mark.parametrize("name", ["embed_tail", "forward", "read_noise", "advance", "read_out"])
def test_a_call_that_writes_over_what_it_returned_is_named(observations, name):
    policy = make_policy()
    setattr(policy, name, into_one_buffer(policy, name))
    with pytest.raises(AssertionError, match=f"{name} wrote into what it had returned before"):
        check_policy(policy, observations)


def test_prefix_rows_in_one_buffer_are_named(observations):
    policy = make_policy()
    embed, buffers = policy.embed_prefix, {}

    def embed_prefix(tokens, starts):
        prefix = embed(tokens, starts)
        rows = buffers.setdefault(prefix.rows.shape, torch.empty_like(prefix.rows)).copy_(prefix.rows)
        return replace(prefix, rows=rows)

    policy.embed_prefix = embed_prefix
    with pytest.raises(AssertionError, match="embed_prefix wrote into what it had returned before"):
        check_policy(policy, observations)


def test_projections_that_are_rotated_in_place_are_named(observations, monkeypatch):
    def rotate_in_place(x, cos, sin):
        half = x.shape[-1] // 2
        turned = torch.cat([-x[..., half:], x[..., :half]], -1)
        return x.mul_(cos).add_(turned * sin)

    monkeypatch.setattr("tracekit.model.backbone.rotate", rotate_in_place)
    with pytest.raises(AssertionError, match="the output of q_proj of layer 0 was written to"):
        check_policy(make_policy(), observations)


def test_a_cache_that_forgets_nothing_is_named(observations, monkeypatch):
    monkeypatch.setattr(KVCache, "forget", lambda _cache, _count: None)
    with pytest.raises(AssertionError, match=r"after cache\.forget"):
        check_policy(make_policy(), observations)


def test_a_cache_that_selects_others_is_named(observations, monkeypatch):
    select = KVCache.select
    monkeypatch.setattr(KVCache, "select", lambda cache, rows: select(cache, torch.arange(len(rows))))
    with pytest.raises(AssertionError, match=r"after cache\.select"):
        check_policy(make_policy(), observations)


def test_a_tail_that_does_not_see_the_cache_is_named(observations, monkeypatch):
    mix = Attention._mix

    def blind(attention, query, key, value, cache, mask):
        return mix(attention, query, key, value, None if cache is not None and cache.length else cache, mask)

    monkeypatch.setattr(Attention, "_mix", blind)
    with pytest.raises(AssertionError, match="over a cache of the prefix"):
        check_policy(make_policy(), observations)


@pytest.mark.parametrize("draw", [lambda: torch.rand(1), np.random.rand])
def test_a_draw_from_a_global_generator_is_named(observations, draw):
    policy = make_policy()
    advance = policy.advance

    def noisy(sample, noise, step):
        draw()
        return advance(sample, noise, step)

    policy.advance = noisy
    with pytest.raises(AssertionError, match="drew from a global random generator"):
        check_policy(policy, observations)


def test_memory_of_an_earlier_step_is_named(observations):
    policy = make_policy()
    advance, seen = policy.advance, []

    def remembering(sample, noise, step):
        seen.append(step)
        return advance(sample, noise, step) + 1e-3 * len(seen)

    policy.advance = remembering
    with pytest.raises(AssertionError, match="another action after other steps"):
        check_policy(policy, observations)


def test_a_wrong_shape_is_named(observations):
    policy = make_policy()
    read_noise = policy.read_noise
    policy.read_noise = lambda hidden: read_noise(hidden)[:1]
    with pytest.raises(AssertionError, match=r"read_noise gives \(1, 10\), .* say \(2, 10\)"):
        check_policy(policy, observations)


def test_a_part_that_is_missing_is_named(observations):
    class Nothing:
        passes = 1

    with pytest.raises(AssertionError, match="has no action_shape, action_spec, advance"):
        check_policy(Nothing(), observations)


def test_one_observation_is_not_enough(observations):
    with pytest.raises(AssertionError, match="at least two observations"):
        check_policy(make_policy(), observations[:1])
