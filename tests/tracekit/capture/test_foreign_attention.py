"""Rows rebuilt beside attention that is not ours: Hugging Face's now and as of transformers 4.40, caches, masks."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional

from tests.eager import rotated
from tracekit.capture import GROUPS, AttentionTap, attention_modules
from tracekit.errors import PolicyError
from tracekit.layout import TokenLayout

LAYOUT = TokenLayout.of_lengths(
    ("bos", 1),
    ("point", 6),
    ("image.front", 256),
    ("text", 3),
    ("proprio", 1),
    ("timestep", 1),
    ("action", 2),
    ("tail", 1),
)
HEADS, KV_HEADS, WIDTH, LAYERS = 4, 2, 32, 2


@pytest.fixture
def llama():
    torch.manual_seed(0)
    return make_llama("sdpa")


def make_llama(attention):
    config = transformers.LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        vocab_size=8,
        attn_implementation=attention,
    )
    return transformers.LlamaModel(config).eval().requires_grad_(False)


@pytest.fixture
def rows():
    return torch.randn(LAYOUT.length, WIDTH, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def eager_maps(llama, rows, **kwargs):
    """(layers, heads, n, n) of the same weights with attention as a matrix."""
    eager = make_llama("eager")
    eager.load_state_dict(llama.state_dict())
    maps = []
    for layer in eager.layers:
        layer.self_attn.register_forward_hook(lambda _m, _a, out: maps.append(out[1][0]))
    eager(inputs_embeds=rows[None], **kwargs)
    return torch.stack(maps)


def expected(maps, group):
    return maps[:, :, LAYOUT.group_positions(group)][..., LAYOUT.visual_positions].mean(2)


def check(tap, maps, tolerance=1e-6):
    for group in GROUPS:
        found = tap.attention[:, :, tap.groups.index(group)]
        assert found.shape == (LAYERS, HEADS, len(LAYOUT.visual_positions))
        assert (found - expected(maps, group)).abs().max() <= tolerance


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("batched_mask", [False, True])
def test_present_signature_with_grouped_queries(rows, attention, batched_mask):
    torch.manual_seed(0)
    llama = make_llama(attention)
    mask = {"attention_mask": torch.ones(1, len(rows), dtype=torch.long)} if batched_mask else {}
    tap = AttentionTap(llama, LAYOUT, GROUPS)
    with torch.no_grad(), tap, tap.rows(torch.arange(len(rows))):
        hidden = llama(inputs_embeds=rows[None], **mask).last_hidden_state[0]
    check(tap, eager_maps(llama, rows))
    assert torch.allclose(tap.norms["postnorm"], hidden[LAYOUT.visual_positions].abs().sum(-1))
    assert not any(module._forward_hooks for module in llama.modules())


def test_rows_over_a_cache_see_what_it_holds(llama, rows):
    cut = LAYOUT.span("proprio").start
    cache = transformers.DynamicCache(config=llama.config)
    tap = AttentionTap(llama, LAYOUT, GROUPS)
    with torch.no_grad(), tap:
        with tap.rows(torch.arange(cut)):
            llama(inputs_embeds=rows[None, :cut], past_key_values=cache, use_cache=True)
        with tap.rows(torch.arange(cut, len(rows)), held=torch.arange(cut)):
            llama(inputs_embeds=rows[None, cut:], past_key_values=cache, use_cache=True)
    check(tap, eager_maps(llama, rows))


def test_a_cache_that_was_not_announced_is_refused(llama, rows):
    tap = AttentionTap(llama, LAYOUT, GROUPS)
    with (
        torch.no_grad(),
        tap,
        tap.rows(torch.arange(260, len(rows)), held=torch.arange(260)),
        pytest.raises(PolicyError, match=r"but the call has .*; announce the rows that the cache holds"),
    ):
        llama(inputs_embeds=rows[None, 260:])


@pytest.mark.parametrize("additive", [False, True])
def test_a_mask_that_the_call_is_given_is_obeyed(llama, rows, additive):
    count = len(rows)
    visible = torch.ones(count, count, dtype=torch.bool).tril()
    visible[:, 20:40] = False  # an image without its second row
    visible |= torch.eye(count, dtype=torch.bool)
    mask = visible[None, None]
    if additive:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    tap = AttentionTap(llama, LAYOUT, GROUPS)
    with torch.no_grad(), tap, tap.rows(torch.arange(count)):
        llama(inputs_embeds=rows[None], attention_mask=mask)
    maps = eager_maps(
        llama, rows, attention_mask=torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)[None, None]
    )
    check(tap, maps)
    blind = (LAYOUT.visual_positions >= 20) & (LAYOUT.visual_positions < 40)
    assert not tap.attention[:, :, tap.groups.index("action")][..., torch.from_numpy(blind)].any()


class Attention440(nn.Module):
    """The signature of transformers 4.40: positions go in, the rotary embedding is the attention's own."""

    def __init__(self):
        super().__init__()
        size = WIDTH // HEADS
        self.q_proj = nn.Linear(WIDTH, WIDTH, bias=False)
        self.k_proj = nn.Linear(WIDTH, KV_HEADS * size, bias=False)
        self.v_proj = nn.Linear(WIDTH, KV_HEADS * size, bias=False)
        self.o_proj = nn.Linear(WIDTH, WIDTH, bias=False)
        self.rotary_emb = Rotary440(size)
        self.maps = None

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        position_ids=None,
        past_key_value=None,
        output_attentions=False,
        use_cache=False,
        cache_position=None,
    ):
        split = lambda x: x.view(1, x.shape[1], -1, WIDTH // HEADS).transpose(1, 2)  # noqa: E731
        query, key, value = (split(p(hidden_states)) for p in (self.q_proj, self.k_proj, self.v_proj))
        query = rotated(query[0], position_ids[0], 10000.0)[None]
        key = rotated(key[0], position_ids[0], 10000.0).repeat_interleave(HEADS // KV_HEADS, 0)[None]
        value = value.repeat_interleave(HEADS // KV_HEADS, 1)
        logits = (query @ key.mT / (WIDTH // HEADS) ** 0.5)[0]
        future = torch.ones(logits.shape[1:], dtype=torch.bool).triu(1)
        self.maps = logits.masked_fill(future, -torch.inf).softmax(-1)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=attention_mask is None)
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), None, past_key_value


class Rotary440(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x, position_ids):
        frequency = 1.0 / 10000.0 ** (torch.arange(0, self.size, 2).float() / self.size)
        angle = (position_ids[..., None].float() * frequency).repeat(1, 1, 2)
        return angle.cos().to(x.dtype), angle.sin().to(x.dtype)


class Decoder440(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"self_attn": Attention440()}) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, rows, positions, **kwargs):
        hidden = rows[None]
        for layer in self.layers:
            hidden = (
                hidden
                + layer["self_attn"](hidden_states=hidden, attention_mask=None, position_ids=positions, **kwargs)[0]
            )
        return self.norm(hidden)


@pytest.mark.parametrize("gap", [0, 9])
def test_the_signature_of_transformers_4_40(rows, gap):
    torch.manual_seed(2)
    decoder = Decoder440().requires_grad_(False)
    positions = torch.arange(len(rows)) + gap * (torch.arange(len(rows)) > 100)
    tap = AttentionTap(decoder, LAYOUT, GROUPS)
    with tap, tap.rows(torch.arange(len(rows))):
        decoder(rows, positions[None])
    check(tap, torch.stack([layer["self_attn"].maps for layer in decoder.layers]))


def test_output_attentions_is_refused_because_some_versions_then_forget_the_mask(rows):
    decoder = Decoder440().requires_grad_(False)
    tap = AttentionTap(decoder, LAYOUT, GROUPS)
    with tap, tap.rows(torch.arange(len(rows))), pytest.raises(PolicyError, match="output_attentions=True"):
        decoder(rows, torch.arange(len(rows))[None], output_attentions=True)


def test_several_samples_at_once_are_refused(llama, rows):
    tap = AttentionTap(llama, LAYOUT, GROUPS)
    with (
        torch.no_grad(),
        tap,
        tap.rows(torch.arange(len(rows))),
        pytest.raises(PolicyError, match=r"\(2, 271, 32\); one sample"),
    ):
        llama(inputs_embeds=torch.stack([rows, rows]))


def test_masks_that_are_no_tensors_are_refused(llama, rows):
    tap = AttentionTap(llama, LAYOUT, GROUPS)
    padded = torch.ones(1, len(rows), dtype=torch.long)
    padded[0, 5] = 0
    with torch.no_grad(), tap, tap.rows(torch.arange(len(rows))):
        attention = llama.layers[0].self_attn
        pair = llama.rotary_emb(rows[None], torch.arange(len(rows))[None])
        for mask in (SimpleNamespace(), padded):
            attention.forward = lambda *_, **__: None
            attention.q_proj(rows), attention.k_proj(rows)
            with pytest.raises(PolicyError, match="as its mask, which cannot be read"):
                attention(rows[None], position_embeddings=pair, attention_mask=mask)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("q_norm", nn.Identity(), "normalises queries or keys"),
        ("sliding_window", 16, "sliding window"),
        ("v_proj", None, "no attention with separate"),
    ],
)
def test_other_attention_is_refused(llama, attribute, value, message):
    for layer in llama.layers:
        setattr(layer.self_attn, attribute, value)
    with pytest.raises(PolicyError, match=message):
        AttentionTap(llama, LAYOUT, GROUPS)


def test_a_backbone_without_final_norm_is_refused(llama):
    with pytest.raises(PolicyError, match="no final `norm`"):
        AttentionTap(llama.layers, LAYOUT, GROUPS)


def test_a_walk_that_is_remembered_sees_what_has_changed(llama):
    """A tap per control step does not search the modules again; what was exchanged, added or compiled is noticed."""
    layers, others = llama.layers, make_llama("sdpa").layers
    before = attention_modules(llama)
    assert attention_modules(llama) == before == [layer.self_attn for layer in layers]
    layers[1] = others[1]
    assert attention_modules(llama) == [before[0], others[1].self_attn]
    layers[0].self_attn = others[0].self_attn
    assert attention_modules(llama) == [others[0].self_attn, others[1].self_attn]
    layers.append(make_llama("sdpa").layers[0])
    assert len(attention_modules(llama)) == 3
    layers[2].self_attn._compiled_call_impl = len  # what `compile()` sets
    with pytest.raises(PolicyError, match="compiled"):
        attention_modules(llama)
