"""Rebuilt attention rows against softmax over the whole matrix, on random decoders and random sets of kept rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.eager import eager_forward, probabilities, rotated
from tracekit.capture import GROUPS, AttentionTap, CaptureSpec, apply_rotary
from tracekit.errors import PolicyError
from tracekit.layout import TokenLayout
from tracekit.model.backbone import Backbone, KVCache

LAYOUT = TokenLayout.of_lengths(
    ("bos", 1),
    ("point", 5),
    ("image.front", 6),
    ("image.wrist", 4),
    ("tactile", 1),
    ("text", 4),
    ("proprio", 1),
    ("timestep", 1),
    ("action", 2),
    ("tail", 1),
)
PREFIX = LAYOUT.prefix_length
VISUAL = LAYOUT.visual_positions


def decoder(heads=4, kv_heads=2, layers=3, seed=0):
    torch.manual_seed(seed)
    backbone = Backbone(
        vocabulary=7,
        hidden=32,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        intermediate=40,
        eps=1e-5,
        rope_theta=10000.0,
    )
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.4)
    return backbone.requires_grad_(False)


def sequence(seed=0):
    return torch.randn(LAYOUT.length, 32, generator=torch.Generator().manual_seed(seed))


def kept_positions(dropped):
    """Positions of the rows that stay when the visual tokens `dropped` (indices of the visual axis) are gone."""
    mask = np.ones(LAYOUT.length, bool)
    mask[VISUAL[sorted(dropped)]] = False
    return torch.from_numpy(np.flatnonzero(mask))


def expected_rows(attention, positions, groups=GROUPS):
    """Group -> (layers, heads, visual) mean over the group's rows, from the matrices of the kept `positions`."""
    index = {int(position): row for row, position in enumerate(positions)}
    found = {}
    for group in groups:
        rows = [index[int(p)] for p in LAYOUT.group_positions(group)]
        out = torch.zeros(*attention.shape[:2], len(VISUAL))
        for column, position in enumerate(VISUAL):
            if int(position) in index:
                out[:, :, column] = attention[:, :, rows, index[int(position)]].mean(-1)
        found[group] = out
    return found


def tapped(backbone, rows, positions, groups=GROUPS, split=None):
    """(tap, hidden) of one forward pass; with `split`, that many rows go into a cache first."""
    with AttentionTap(backbone, LAYOUT, groups) as tap:
        if split is None:
            with tap.rows(positions):
                return tap, backbone(rows, positions)
        layers = len(backbone.layers)
        heads = backbone.layers[0].self_attn.kv_heads
        cache = KVCache(layers, heads, LAYOUT.length, backbone.head_dim, torch.float32, rows.device)
        with tap.rows(positions[:split]):
            first = backbone(rows[:split], positions[:split], cache)
        with tap.rows(positions[split:], positions[:split]):
            return tap, torch.cat([first, backbone(rows[split:], positions[split:], cache)])


def received(tap):
    """Group -> (layers, heads, visual) of what the tap rebuilt."""
    return dict(zip(tap.groups, tap.attention.unbind(2), strict=True))


DROPPED = st.sets(st.integers(0, len(VISUAL) - 1))


@settings(max_examples=25, deadline=None)
@given(DROPPED, st.sampled_from([4, 2, 1]), st.booleans(), st.integers(0, 3))
def test_rows_are_those_of_an_eager_forward(dropped, kv_heads, cached, seed):
    backbone, positions = decoder(kv_heads=kv_heads, seed=seed), kept_positions(dropped)
    rows = sequence(seed)[positions]
    split = int((positions < PREFIX).sum()) if cached else None
    tap, hidden = tapped(backbone, rows, positions, split=split)
    eager = eager_forward(backbone, rows, positions)
    torch.testing.assert_close(hidden, eager.hidden, rtol=1e-4, atol=1e-5)
    expected = expected_rows(eager.attention, positions)
    assert tap.groups == GROUPS
    for group, found in received(tap).items():
        assert found.shape == (3, 4, len(VISUAL))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected[group], rtol=0, atol=1e-5)
        assert not found[:, :, sorted(dropped)].any()
    assert set(tap.norms) == ({"prenorm", "postnorm"} if len(dropped) < len(VISUAL) else set())
    for name, states in (("prenorm", eager.residual), ("postnorm", eager.hidden)):
        if name not in tap.norms:
            continue
        norms = torch.zeros(len(VISUAL))
        for column, position in enumerate(VISUAL):
            if column not in dropped:
                norms[column] = states[positions == int(position)].abs().sum()
        torch.testing.assert_close(tap.norms[name], norms, rtol=1e-4, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(DROPPED, st.sampled_from([4, 2]))
def test_rows_are_the_softmax_of_the_very_queries_and_keys_that_were_computed(dropped, kv_heads):
    backbone, positions = decoder(kv_heads=kv_heads), kept_positions(dropped)
    rows, seen = sequence()[positions], {}

    def keep(name):
        def hook(_module, _inputs, output):
            seen.setdefault(name, []).append(output.clone())

        return hook

    hooks = []
    for layer in backbone.layers:
        hooks += [layer.self_attn.q_proj.register_forward_hook(keep("q"))]
        hooks += [layer.self_attn.k_proj.register_forward_hook(keep("k"))]
    tap, _ = tapped(backbone, rows, positions)
    for hook in hooks:
        hook.remove()
    visible = torch.ones(len(positions), len(positions), dtype=torch.bool).tril()
    maps = []
    for query, key in zip(seen["q"], seen["k"], strict=True):
        q, k = (x.view(len(positions), -1, backbone.head_dim).transpose(0, 1) for x in (query, key))
        turned = (rotated(x, positions, backbone.rope_theta).double() for x in (q, k))
        maps.append(probabilities(*turned, visible).float())
    expected = expected_rows(torch.stack(maps), positions)
    for group, found in received(tap).items():
        torch.testing.assert_close(found, expected[group], rtol=1e-5, atol=1e-7)


def test_norms_are_sums_of_absolute_values_of_the_residual_stream():
    backbone, positions = decoder(), torch.arange(LAYOUT.length)
    stream = []
    hook = backbone.norm.register_forward_hook(lambda _m, inputs, output: stream.extend([inputs[0], output]))
    tap, _ = tapped(backbone, sequence(), positions)
    hook.remove()
    torch.testing.assert_close(tap.norms["prenorm"], stream[0][VISUAL].abs().sum(-1), rtol=0, atol=0)
    torch.testing.assert_close(tap.norms["postnorm"], stream[1][VISUAL].abs().sum(-1), rtol=0, atol=0)


def test_a_later_pass_over_the_cache_has_rows_of_the_tail_only():
    """Only the tail is fed: action rows are rebuilt over the cached keys, and no norm is taken."""
    backbone, positions = decoder(), torch.arange(LAYOUT.length)
    rows = sequence()
    cache = KVCache(3, 2, LAYOUT.length, backbone.head_dim, torch.float32, rows.device)
    backbone(rows[:PREFIX], positions[:PREFIX], cache)
    with AttentionTap(backbone, LAYOUT, ("action",)) as tap, tap.rows(positions[PREFIX:], positions[:PREFIX]):
        backbone(rows[PREFIX:], positions[PREFIX:], cache)
    expected = expected_rows(eager_forward(backbone, rows, positions).attention, positions, ("action",))
    torch.testing.assert_close(received(tap)["action"], expected["action"], rtol=0, atol=1e-5)
    assert tap.norms == {}


def test_rows_fed_behind_the_layout_are_no_groups():
    """Padding rows of a short tail come after every position of the layout and must not count as action rows."""
    backbone = decoder()
    stop = LAYOUT.span("action").stop
    rows = sequence()[:stop]
    positions = torch.arange(stop + 9)
    padded = torch.cat([rows, rows[-1:].expand(9, -1)])
    plain, _ = tapped(backbone, sequence(), torch.arange(LAYOUT.length))
    split, _ = tapped(backbone, padded, positions)
    torch.testing.assert_close(received(split)["action"], received(plain)["action"], rtol=1e-5, atol=1e-7)


def test_the_tap_changes_nothing_and_leaves_no_hook():
    backbone, positions = decoder(), torch.arange(LAYOUT.length)
    rows = sequence()
    plain = backbone(rows, positions)
    tap, hidden = tapped(backbone, rows, positions)
    assert torch.equal(hidden, plain)
    assert tap.elapsed_ns > 0
    with pytest.raises(RuntimeError), AttentionTap(backbone, LAYOUT, GROUPS) as tap, tap.rows(positions):
        backbone(rows[:, :5], positions)
    assert not any(layer.self_attn.observers for layer in backbone.layers)
    for module in backbone.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert torch.equal(backbone(rows, positions), plain)


def test_a_group_that_the_layout_lacks_is_left_out():
    layout = TokenLayout.of_lengths(("bos", 1), ("image.front", 4), ("text", 3), ("action", 2))
    backbone, positions = decoder(), torch.arange(10)
    with AttentionTap(backbone, layout, GROUPS) as tap, tap.rows(positions):
        backbone(sequence()[:10], positions)
    assert tap.groups == ("text", "action")
    assert received(tap)["text"].shape == (3, 4, 4)


def test_forward_calls_that_were_not_announced_are_refused():
    backbone, positions = decoder(), torch.arange(LAYOUT.length)
    with pytest.raises(PolicyError, match="not announced"), AttentionTap(backbone, LAYOUT, GROUPS):
        backbone(sequence(), positions)
    assert not backbone.layers[0].self_attn.observers


def test_a_group_whose_rows_never_came_is_named():
    backbone, positions = decoder(), torch.arange(PREFIX)
    with AttentionTap(backbone, LAYOUT, GROUPS) as tap, tap.rows(positions):
        backbone(sequence()[:PREFIX], positions)
    with pytest.raises(PolicyError, match="'action'"):
        _ = tap.attention


def test_only_llama_shaped_backbones_can_be_tapped():
    with pytest.raises(PolicyError, match="only LLaMA-shaped attention"):
        AttentionTap(nn.Linear(2, 2), LAYOUT, GROUPS)
    backbone = decoder()
    del backbone.norm
    with pytest.raises(PolicyError, match="final `norm`"):
        AttentionTap(backbone, LAYOUT, GROUPS)


def test_rotary_is_the_rotation_of_pairs():
    x = sequence()[:, :8].view(1, LAYOUT.length, 8)
    positions = torch.arange(LAYOUT.length) * 7
    frequency = 1.0 / 10000.0 ** (torch.arange(0, 8, 2).float() / 8)
    angles = torch.cat([positions[:, None] * frequency] * 2, dim=-1)
    found = apply_rotary(x, angles.cos(), angles.sin())
    torch.testing.assert_close(found, rotated(x, positions, 10000.0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.norm(dim=-1), x.norm(dim=-1))
    assert apply_rotary(x.bfloat16(), angles.cos(), angles.sin()).dtype == torch.float32


def test_what_a_recording_keeps():
    assert CaptureSpec.default() == CaptureSpec()
    assert CaptureSpec.minimal().embeddings == "none"
    assert not CaptureSpec.minimal().later_action_rows
