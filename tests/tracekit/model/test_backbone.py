import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaConfig, LlamaForCausalLM

from tracekit.errors import PolicyError
from tracekit.model.backbone import Backbone, CausalLM, KVCache

SIZES = {"hidden": 48, "layers": 3, "heads": 6, "intermediate": 80, "eps": 1e-5, "rope_theta": 5000.0}


def hugging_face(kv_heads: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=kv_heads,
        rms_norm_eps=1e-5,
        rope_theta=5000.0,
        attn_implementation="eager",
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def ours(theirs: LlamaForCausalLM) -> CausalLM:
    kv_heads = theirs.config.num_key_value_heads
    model = CausalLM(Backbone(vocabulary=31, kv_heads=kv_heads, **SIZES), 31, 48)
    model.load_state_dict(theirs.state_dict(), strict=True)
    return model.eval()


@pytest.fixture(params=[6, 3, 1], ids=lambda n: f"{n}-kv-heads")
def pair(request):
    theirs = hugging_face(request.param)
    return ours(theirs), theirs


def cache_for(model: CausalLM, capacity: int) -> KVCache:
    attention = model.model.layers[0].self_attn
    return KVCache(3, attention.kv_heads, capacity, attention.head_dim, torch.float32, torch.device("cpu"))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


@torch.inference_mode()
def test_same_numbers_as_hugging_face_from_its_own_state_dict(pair):
    model, theirs = pair
    rows = torch.randn(21, 48)
    expected = theirs.model(inputs_embeds=rows[None], use_cache=False).last_hidden_state[0]
    hidden = model.model(rows, torch.arange(21))
    close(hidden, expected)
    close(model.lm_head(hidden), theirs.lm_head(expected))


@torch.inference_mode()
def test_dropped_rows_keep_their_positions(pair):
    model, theirs = pair
    rows, positions = torch.randn(9, 48), torch.tensor([0, 1, 5, 6, 7, 20, 33, 34, 90])
    # Without a mask, transformers takes jumps in the positions for borders between packed sequences.
    seen = torch.ones(1, 9, dtype=torch.long)
    expected = theirs.model(
        inputs_embeds=rows[None], position_ids=positions[None], attention_mask=seen, use_cache=False
    )
    close(model.model(rows, positions), expected.last_hidden_state[0])


@torch.inference_mode()
def test_tails_over_a_cache_equal_the_whole_sequence(pair):
    model, _ = pair
    prefix, tails, positions = torch.randn(17, 48), torch.randn(3, 4, 48), torch.arange(21)
    cache = cache_for(model, 21)
    close(model.model(prefix, positions[:17], cache), model.model(prefix, positions[:17]))
    for tail in tails:
        whole = model.model(torch.cat([prefix, tail]), positions)
        close(model.model(tail, positions[17:], cache), whole[17:])
        assert cache.length == 21
        cache.forget(4)
    single = model.model(tails[0][:1], positions[17:18], cache)
    close(single, model.model(torch.cat([prefix, tails[0][:1]]), positions[:18])[17:])


@torch.inference_mode()
def test_selecting_cache_rows_is_masking_their_keys(pair):
    model, _ = pair
    prefix, tail, positions = torch.randn(10, 48), torch.randn(2, 48), torch.arange(12)
    kept = torch.tensor([0, 3, 4, 8, 9])
    cache = cache_for(model, 12)
    model.model(prefix, positions[:10], cache)
    cache.select(kept)
    found = model.model(tail, positions[10:], cache)
    mask = torch.ones(12, 12, dtype=torch.bool).tril()
    mask[10:, [i for i in range(10) if i not in kept.tolist()]] = False
    close(found, model.model(torch.cat([prefix, tail]), positions, mask=mask)[10:])


@torch.inference_mode()
def test_a_mask_lets_several_tails_share_one_prefix_in_a_batch(pair):
    model, _ = pair
    prefix, tails = torch.randn(2, 8, 48), torch.randn(2, 3, 2, 48)
    mask = torch.ones(14, 14, dtype=torch.bool).tril()
    for i in range(3):
        mask[8 + 2 * i : 10 + 2 * i, 8 : 8 + 2 * i] = False
    positions = torch.cat([torch.arange(8), torch.arange(8, 10).repeat(3)])
    together = model.model(torch.cat([prefix, tails.flatten(1, 2)], 1), positions, mask=mask)
    for b in range(2):
        for i in range(3):
            alone = model.model(torch.cat([prefix[b], tails[b, i]]), torch.arange(10))
            close(together[b, 8 + 2 * i : 10 + 2 * i], alone[8:])


@torch.inference_mode()
def test_prefill_and_tails_go_through_the_fused_kernel():
    model = ours(hugging_face(6))
    cache = cache_for(model, 20)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises where the fused kernel does not apply
        model.model(torch.randn(16, 48), torch.arange(16), cache)
        model.model(torch.randn(4, 48), torch.arange(16, 20), cache)


def test_attention_is_called_as_a_capture_expects():
    model = ours(hugging_face(3))
    seen = {}
    attention = model.model.layers[1].self_attn
    attention.register_forward_pre_hook(lambda _m, args, kwargs: seen.update(kwargs), with_kwargs=True)
    attention.q_proj.register_forward_hook(lambda _m, args, output: seen.update(q=output.shape))
    attention.k_proj.register_forward_hook(lambda _m, args, output: seen.update(k=output.shape))
    cache = cache_for(model, 5)
    with torch.inference_mode():
        model.model(torch.randn(5, 48), torch.arange(5), cache)
    assert [t.shape for t in seen["position_embeddings"]] == [(5, 8), (5, 8)]
    assert seen["cache"] is cache.layers[1]
    assert (seen["q"], seen["k"]) == ((5, 48), (5, 24))
    assert cache.layers[1].keys.shape == cache.layers[1].values.shape == (3, 5, 8)


@torch.inference_mode()
@pytest.mark.parametrize("behind", [0, 1])
def test_blocks_run_apart_are_the_whole_decoder(pair, behind):
    model, _ = pair
    rows, positions, cut = torch.randn(9, 48), torch.arange(9), behind + 1
    first = model.model(rows, positions, blocks=slice(0, cut))
    assert torch.equal(model.model(first, positions, blocks=slice(cut, None)), model.model(rows, positions))


@torch.inference_mode()
def test_a_cache_may_hold_other_rows_in_later_layers(pair):
    """Rows dropped behind a layer are keys in the layers up to it, and in none after."""
    model, _ = pair
    rows, positions, kept = torch.randn(9, 48), torch.arange(9), torch.tensor([0, 1, 4, 5, 6, 7, 8])
    cache = cache_for(model, 9)
    first = model.model(rows, positions, cache, blocks=slice(0, 1))[kept]
    whole = model.model(first, positions[kept], cache, blocks=slice(1, None))
    cache.forget(2)
    assert [layer.length for layer in cache.layers][:2] == [7, 5]
    close(model.model(rows[7:], positions[7:], cache), whole[-2:])


def test_a_cache_refuses_what_it_cannot_hold_or_forget():
    model = ours(hugging_face(6))
    cache = cache_for(model, 4)
    with pytest.raises(PolicyError, match="5 rows do not fit a capacity of 4"), torch.inference_mode():
        model.model(torch.randn(5, 48), torch.arange(5), cache)
    with pytest.raises(PolicyError, match="cannot forget 3 rows"):
        cache.forget(3)


def test_a_backbone_of_its_own_begins_with_drawn_rows():
    """Memory as it was found is zero, or anything, not finite numbers included."""
    torch.manual_seed(0)
    rows = [Backbone(vocabulary=1000, kv_heads=6, **SIZES).embed_tokens.weight.detach() for _ in range(2)]
    for own in rows:
        assert 0.95 < own.std().item() < 1.05
    assert not torch.equal(*rows)
