"""What a denoise pass over a kept prefix allocates does not depend on the prefix: nothing of its length is made."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recorders.sim import Environment
from tests.small import make_config, make_policy
from tests.tracekit.engine.support import run

PASS = 2


class Fresh(TorchDispatchMode):
    """Counts the tensors that operations allocate, by operation and size; views and results in place are none."""

    def __init__(self):
        super().__init__()
        self.made = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [one for one in tree_leaves((args, kwargs)) if torch.is_tensor(one) and not one.is_mkldnn]
        given = {one.untyped_storage().data_ptr() for one in tensors}  # packed weights have no storage to look at
        for one in tree_leaves(result):
            if torch.is_tensor(one) and one.untyped_storage().data_ptr() not in given:
                self.made[str(function), one.numel()] += 1
        return result


@pytest.fixture(scope="module")
def observation():
    return Environment("close_box").reset(7)


def made_in_a_pass(policy, observation, rate, monkeypatch):
    mode = Fresh()
    embed, advance = policy.embed_tail, policy.advance

    def begin(sample, step):
        if step == PASS:
            mode.__enter__()
        return embed(sample, step)

    def end(sample, noise, step):
        if step == PASS:
            mode.__exit__(None, None, None)
        return advance(sample, noise, step)

    with monkeypatch.context() as patched:
        patched.setattr(policy, "embed_tail", begin, raising=False)
        patched.setattr(policy, "advance", end, raising=False)
        (result,) = run(policy, make_config("naive", "prefix_kv", rate=rate), [observation])
    return mode.made, int(result.kept[0].sum())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_pass_allocates_the_same_over_any_prefix(observation, dtype, monkeypatch):
    policy = make_policy(dtype=dtype)
    run(policy, make_config("none", "prefix_kv"), [observation])  # embeds the timesteps, once and for all
    short, few = made_in_a_pass(policy, observation, 0.9, monkeypatch)
    long, many = made_in_a_pass(policy, observation, 0.1, monkeypatch)
    assert many > 8 * few
    assert short == long
    rows, width = 4, 48  # the tail, padded, and the widest of its activations
    assert max(size for _, size in long) <= max(rows * width, policy.config.hidden_size**2)


def test_the_counter_sees_what_would_grow(observation, monkeypatch):
    policy = make_policy()
    run(policy, make_config("none", "prefix_kv"), [observation])
    made, _ = made_in_a_pass(policy, observation, 0.1, monkeypatch)
    keep = policy.backbone.layers[0].self_attn
    original = keep._mix
    monkeypatch.setattr(keep, "_mix", lambda q, k, v, cache, mask: original(q, k * 1, v, cache, mask))
    more, _ = made_in_a_pass(policy, observation, 0.1, monkeypatch)
    assert more != made
