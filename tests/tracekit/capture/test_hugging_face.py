"""The tap on Hugging Face's LLaMA, untouched: fused attention, its caches and masks, batches of one."""

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaModel

from tracekit.capture import GROUPS, AttentionTap
from tracekit.errors import PolicyError
from tracekit.layout import TokenLayout

LAYOUT = TokenLayout.of_lengths(
    ("bos", 1),
    ("point", 5),
    ("image.front", 6),
    ("text", 4),
    ("proprio", 1),
    ("timestep", 1),
    ("action", 2),
    ("tail", 1),
)
VISUAL = torch.from_numpy(LAYOUT.visual_positions)
ROWS = torch.randn(1, LAYOUT.length, 32, generator=torch.Generator().manual_seed(3))


def llama(attention="sdpa"):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation=attention,
    )
    return LlamaModel(config).eval().requires_grad_(False)


def causal(positions):
    """(1, 1, n, n) float mask. Without one, and without a cache, gaps in the positions are taken for packed samples."""
    return torch.full((len(positions), len(positions)), -torch.inf).triu(1)[None, None]


def eager_rows(positions):
    """(layers, heads, n, n) attention of Hugging Face's own eager path."""
    out = llama("eager")(
        inputs_embeds=ROWS[:, positions],
        position_ids=positions[None],
        attention_mask=causal(positions),
        output_attentions=True,
    )
    return torch.cat(out.attentions)


def expected(attention, positions, group):
    rows = torch.isin(positions, torch.from_numpy(LAYOUT.group_positions(group)))
    out = torch.zeros(*attention.shape[:2], len(VISUAL))
    for column, position in enumerate(VISUAL):
        here = (positions == position).nonzero().flatten()
        if len(here):
            out[:, :, column] = attention[:, :, rows][..., here[0]].mean(-1)
    return out


POSITIONS = {
    "everything": torch.arange(LAYOUT.length),
    "pruned": torch.tensor([p for p in range(LAYOUT.length) if p not in (2, 3, 7, 9, 10)]),
}


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("which", POSITIONS)
def test_rows_of_the_fused_run_are_those_of_the_eager_one(which, cached):
    positions, model = POSITIONS[which], llama()
    split = int((positions < LAYOUT.prefix_length).sum())
    with AttentionTap(model, LAYOUT, GROUPS) as tap:
        if cached:
            cache = DynamicCache()
            for part, held in ((slice(0, split), None), (slice(split, None), positions[:split])):
                with tap.rows(positions[part], held):
                    model(
                        inputs_embeds=ROWS[:, positions[part]],
                        position_ids=positions[None, part],
                        past_key_values=cache,
                    )
        else:
            with tap.rows(positions):
                mask = None if which == "everything" else causal(positions)
                model(
                    inputs_embeds=ROWS[:, positions],
                    position_ids=positions[None],
                    attention_mask=mask,
                    use_cache=False,
                )
    attention = eager_rows(positions)
    assert list(tap.received) == list(GROUPS)
    for group, found in tap.received.items():
        torch.testing.assert_close(found, expected(attention, positions, group), rtol=0, atol=1e-6)


def test_a_batch_of_several_samples_is_refused():
    model, positions = llama(), POSITIONS["everything"]
    with (
        pytest.raises(PolicyError, match="one sample at a time"),
        AttentionTap(model, LAYOUT, GROUPS) as tap,
        tap.rows(positions),
    ):
        model(inputs_embeds=ROWS.expand(2, -1, -1), position_ids=positions[None], use_cache=False)


def test_output_attentions_is_refused():
    """Some versions run it without the causal mask and say nothing."""
    model, positions = llama("eager"), POSITIONS["everything"]
    with (
        pytest.raises(PolicyError, match="output_attentions"),
        AttentionTap(model, LAYOUT, GROUPS) as tap,
        tap.rows(positions),
    ):
        model.layers[0].self_attn(
            hidden_states=ROWS,
            position_embeddings=model.rotary_emb(ROWS, positions[None]),
            attention_mask=None,
            output_attentions=True,
        )
