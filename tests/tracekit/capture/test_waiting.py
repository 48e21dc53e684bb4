"""What waits for its arithmetic gives what it would have given at once: over passes, blocks, threads, ways to look."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

from recorders.sim import Environment
from tests.eager import eager_forward, probabilities, rotated
from tests.small import make_config, make_policy
from tests.tracekit.capture.test_attention import LAYOUT, PREFIX, VISUAL, decoder, expected_rows, sequence
from tracekit.capture import GROUPS, AttentionTap, CaptureSpec
from tracekit.capture import waiting as waiting_module
from tracekit.capture.rebuilding import LayerRows, arithmetic
from tracekit.capture.rebuilding import probabilities as probabilities_of
from tracekit.engine import Controller, StepOptions
from tracekit.errors import PolicyError
from tracekit.model.backbone import KVCache

POSITIONS = torch.arange(LAYOUT.length)


@pytest.fixture(scope="module")
def observation():
    return Environment("close_box").reset(7)


def make_cache(backbone, dtype=torch.float32):
    attention = backbone.layers[0].self_attn
    return KVCache(
        len(backbone.layers), attention.kv_heads, LAYOUT.length, backbone.head_dim, dtype, torch.device("cpu")
    )


def passes(backbone, count=3, *, blocks=None, dtype=torch.float32):
    """(tap, sequences): a prefill and `count` tails over it, whose rows differ; `blocks`: layers of a first call."""
    cache = make_cache(backbone, dtype)
    held, tail = POSITIONS[:PREFIX], POSITIONS[PREFIX:]
    sequences = [torch.cat([sequence()[:PREFIX], sequence(seed)[PREFIX:]]) for seed in range(count)]
    with AttentionTap(backbone, LAYOUT, GROUPS, CaptureSpec.default()) as tap:
        with tap.rows(held):
            backbone(sequences[0][:PREFIX], held, cache)
        for index, rows in enumerate(sequences):
            if index == 1:
                tap.follow()
            if blocks is None:
                with tap.rows(tail, held):
                    backbone(rows[PREFIX:], tail, cache)
            else:
                with tap.rows(tail, held):
                    between = backbone(rows[PREFIX:], tail, cache, blocks=slice(0, blocks))
                with tap.rows(tail, held):
                    backbone(between, tail, cache, blocks=slice(blocks, None))
            cache.forget(len(tail))
    return tap, sequences


@pytest.mark.parametrize("blocks", [None, 1, 2])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_all_passes_over_one_prefix_are_those_of_an_eager_forward(blocks, kv_heads):
    backbone = decoder(kv_heads=kv_heads)
    tap, sequences = passes(backbone, blocks=blocks)
    later = tap.received_later
    assert later.shape == (2, 3, len(VISUAL))
    for index, rows in enumerate(sequences):
        maps = eager_forward(backbone, rows, POSITIONS).attention
        expected = expected_rows(maps, POSITIONS)
        if index == 0:
            for axis, group in enumerate(GROUPS):
                torch.testing.assert_close(tap.attention[:, :, axis], expected[group], rtol=0, atol=1e-6)
            text = LAYOUT.group_positions("text")[-1]
            torch.testing.assert_close(tap.last_row, maps.mean(1)[:, text][:, VISUAL], rtol=0, atol=1e-6)
        else:
            torch.testing.assert_close(later[index - 1], expected["action"].mean(1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("limit", [0, 3000, 2**24])
def test_how_much_may_wait_changes_no_number(monkeypatch, limit):
    """The arithmetic of every layer by itself, of a few, or of all of them."""
    monkeypatch.setattr(waiting_module, "PENDING_BYTES", 2**24)
    all_at_once, _ = passes(decoder())
    monkeypatch.setattr(waiting_module, "PENDING_BYTES", limit)
    tap, _ = passes(decoder())
    assert tap.can_wait == (limit > 3000)
    assert torch.equal(tap.received_later, all_at_once.received_later)
    assert torch.equal(tap.attention, all_at_once.attention)
    assert torch.equal(tap.last_row, all_at_once.last_row)


def test_hooks_see_what_an_observer_sees():
    """The toolkit's own attention is asked to show its projections; any other is hooked."""
    observed, _ = passes(decoder())
    backbone = decoder()
    for layer in backbone.layers:
        layer.self_attn.observers = ()  # no list: nobody can enter
    hooked, _ = passes(backbone)
    assert torch.equal(hooked.attention, observed.attention)
    assert torch.equal(hooked.received_later, observed.received_later)
    assert not any(module._forward_hooks for module in backbone.modules())


def error_against_projections(backbone, dtype):
    """(tap, largest error) against softmax in float64 over the projections as they came out, over a cache as well."""
    seen = {"q": [], "k": []}
    for layer in backbone.layers:
        layer.self_attn.q_proj.register_forward_hook(lambda _m, _i, out: seen["q"].append(out.clone()))
        layer.self_attn.k_proj.register_forward_hook(lambda _m, _i, out: seen["k"].append(out.clone()))
    tap, _ = passes(backbone, 1, dtype=dtype)
    visible, maps, layers = torch.ones(LAYOUT.length, LAYOUT.length, dtype=torch.bool).tril(), [], len(backbone.layers)
    for layer in range(layers):
        q, k = (
            torch.cat([seen[name][layer], seen[name][layers + layer]]).view(LAYOUT.length, -1, 8).transpose(0, 1)
            for name in ("q", "k")
        )
        turned = (rotated(x.float(), POSITIONS, backbone.rope_theta).double() for x in (q, k))
        maps.append(probabilities(*turned, visible).float())
    expected = expected_rows(torch.stack(maps), POSITIONS)
    errors = [(tap.attention[:, :, axis] - expected[group]).abs().max() for axis, group in enumerate(GROUPS)]
    return tap, float(max(errors))


def test_in_half_precision_rows_are_those_of_the_very_queries_and_keys():
    tap, error = error_against_projections(decoder().bfloat16(), torch.bfloat16)
    assert error <= 2e-2
    assert tap.dtype == torch.bfloat16


def test_reduced_products_of_the_process_do_not_reach_the_rows():
    """At sizes where this processor has bfloat16 products; elsewhere the setting changes nothing, and nothing fails."""
    generator, before = torch.Generator().manual_seed(0), torch.get_float32_matmul_precision()
    query, keys = torch.randn(64, 256, generator=generator), torch.randn(2, 512, 128, generator=generator)
    straight = torch.ones(64, 128), torch.zeros(64, 128)
    rows = LayerRows(0, query, keys, 128**-0.5, torch.zeros(1, 64, 512))
    expected = (query.view(64, 2, 128).transpose(0, 1).double() @ keys.mT.double() * 128**-0.5).softmax(-1)
    backbone = decoder()
    try:
        torch.set_float32_matmul_precision("medium")
        with arithmetic(torch.device("cpu"), 0):
            found = probabilities_of([rows], straight)[0]
        assert torch.get_float32_matmul_precision() == "medium"
        assert not AttentionTap(backbone, LAYOUT, GROUPS).can_wait  # the setting belongs to the process
    finally:
        torch.set_float32_matmul_precision(before)
    assert AttentionTap(backbone, LAYOUT, GROUPS).can_wait
    assert (found - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("reuse", ["none", "prefix_kv"])
def test_maps_of_a_few_layers_leave_the_rows_of_all_in_place(observation, reuse):
    policy = make_policy(layers=4)
    found = {}
    for name, maps in (("with", (1, 2)), ("without", ())):
        controller = Controller(policy, make_config("none", reuse), StepOptions(CaptureSpec(name, maps=maps)))
        controller.reset(11)
        found[name] = controller.step(observation)
    np.testing.assert_allclose(
        found["with"].observables.attention, found["without"].observables.attention, rtol=0, atol=1e-6
    )
    assert found["with"].extras["maps"].shape[0] == 2


@pytest.mark.parametrize("reuse", ["none", "prefix_kv"])
def test_what_is_read_later_by_another_thread_is_what_would_have_been_read_at_once(observation, reuse, monkeypatch):
    policy = make_policy(layers=4)

    def step():
        controller = Controller(policy, make_config("none", reuse), StepOptions(CaptureSpec.default(), "rows"))
        controller.reset(11)
        return controller, controller.step(observation)

    _, later = step()
    monkeypatch.setattr(AttentionTap, "can_wait", property(lambda _tap: False))
    controller, at_once = step()
    for _ in range(2):
        controller.step(observation)  # steps go on before the first is read
    found = []
    thread = threading.Thread(target=lambda: found.append((later.observables, later.action_rows)))
    thread.start()
    thread.join()
    observables, action_rows = found[0]
    assert observables.attention.tobytes() == at_once.observables.attention.tobytes()
    assert observables.last_row.tobytes() == at_once.observables.last_row.tobytes()
    assert observables.qk_text_layer0.tobytes() == at_once.observables.qk_text_layer0.tobytes()
    for feature in ("prenorm", "postnorm"):
        assert observables.norms[feature].tobytes() == at_once.observables.norms[feature].tobytes()
    assert action_rows.tobytes() == at_once.action_rows.tobytes()
    assert later.encoded[0].rows_digest == at_once.encoded[0].rows_digest
    assert later.reduction_ns > 0


class Replayed(nn.Module):
    """What is left of a module whose kernels were captured in a graph: its forward is not run."""

    def __init__(self, module):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = module.q_proj, module.k_proj, module.v_proj

    def forward(self, x, **_given):
        return torch.zeros_like(x)


@pytest.mark.parametrize("which", [(0, 1, 2), (1,)])
def test_a_part_that_runs_no_hooks_is_refused(which):
    backbone = decoder()
    for index in which:
        backbone.layers[index].self_attn = Replayed(backbone.layers[index].self_attn)

    def look():
        with AttentionTap(backbone, LAYOUT, GROUPS) as tap:
            with tap.rows(POSITIONS):
                backbone(sequence(), POSITIONS)
            return tap.attention

    with pytest.raises(PolicyError, match="compiled or graph-captured"):
        look()
