"""Operations by counting, against torch's own counter of the operations that really run."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.tracekit.model.conftest import make_observation, tiny_policy
from tracekit.bench.costs import decoder_cost, encoder_cost, head_cost, kv_cache_bytes, tail_cost
from tracekit.model.layers import projections


@pytest.fixture(scope="module")
def policy():
    return tiny_policy(views=("front", "wrist"), points=64, point_blocks=(2, 1), image_heads=4).requires_grad_(False)


def counted(call) -> int:
    counter = FlopCounterMode(display=False)
    with counter:
        call()
    return counter.get_total_flops()


def weights(*modules) -> int:
    return sum(m.weight.numel() for module in modules for m in projections(module))


def test_encoders_are_counted_as_they_run(policy):
    tokens = policy.tokenize(make_observation(policy.config))
    cost = encoder_cost(policy.config, item_bytes=2)
    found = counted(lambda: policy.embed_prefix(tokens, (3, 5)))
    # The products that choose neighbours are no part of the encoders' own.
    choosing = sum(2 * 3 * (policy.config.points >> i) * (policy.config.points >> (i + 1)) for i in range(2))
    assert found - choosing == cost.flops
    encoders = (policy.vision_tower_2d, policy.vision_tower_3d, policy.projector_2d, policy.projector_3d)
    assert cost.nbytes == 2 * weights(*encoders, policy.proprio_embedder)


def test_embedders_and_action_head_are_counted_as_they_run(policy):
    cost = tail_cost(policy.config, item_bytes=4)
    hidden = torch.rand(policy.config.action_window, policy.config.hidden_size)
    sample = torch.rand(policy.action_shape)
    assert counted(lambda: (policy.embed_tail(sample, 0), policy.read_noise(hidden))) == cost.flops
    assert cost.nbytes == 4 * weights(policy.t_embedder, policy.x_embedder, policy.final_layer)


@pytest.mark.parametrize(("rows", "held"), [(9, 0), (4, 21)])
def test_decoder_is_counted_as_it_runs_with_attention_to_the_past_alone(policy, rows, held):
    config = policy.config
    cache = policy.new_cache(rows + held)
    if held:
        policy.forward(torch.rand(held, config.hidden_size), torch.arange(held), cache)
    given = torch.rand(rows, config.hidden_size), torch.arange(held, held + rows), cache
    attention = sum(4 * config.hidden_size * (held + i + 1) for i in range(rows))
    linear = 2 * rows * weights(policy.backbone) // config.layers
    cost = decoder_cost(config, rows, held, item_bytes=2)
    assert cost.flops == config.layers * (linear + attention)
    # torch's counter does not know the fused kernel of the CPU.
    assert counted(lambda: policy.forward(*given)) == config.layers * linear
    assert cost.nbytes == 2 * weights(policy.backbone) + kv_cache_bytes(config, rows + held, 2)


def test_the_vocabulary_head_is_counted_as_it_runs(policy):
    head = policy.llm_backbone.llm.lm_head
    cost = head_cost(policy.config, rows=5, item_bytes=2)
    assert counted(lambda: head(torch.rand(5, policy.config.hidden_size))) == cost.flops
    assert cost.nbytes == 2 * head.weight.numel()
