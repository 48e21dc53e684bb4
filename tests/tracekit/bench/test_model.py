import json

import pytest
import torch

from tests.tracekit.model.conftest import tiny_policy
from tracekit.bench import Bound, Line, bench_model
from tracekit.bench import model as bench_module
from tracekit.bench.costs import Cost
from tracekit.bench.limits import Limits, LimitsProbe
from tracekit.bench.measuring import Measured, Times, take_turns
from tracekit.errors import ConfigError


@pytest.fixture(scope="module")
def report():
    """The small policy in place of the release's widths: the same code, seconds instead of minutes."""
    config = tiny_policy(views=("front",), action_window=1, points=1024, point_neighbours=8).config
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_module, "preset_config", lambda _preset: config)
        patch.setattr(bench_module, "TEXT_IDS", (1, *range(3, 15)))
        patch.setattr(bench_module, "FULL_WIDTH", config.hidden_size)
        patch.setattr("tracekit.bench.limits.SIDE", 64)
        patch.setattr("tracekit.bench.limits.COPIED_BYTES", 2**16)
        return bench_model("tiny", rates=(0.5, 0.8), rounds=2, threads=1)


def test_every_line_of_the_issue_is_there(report):
    steps = [line.name for line in report.steps]
    assert steps == [
        "release: 4 full passes, encoders each, no lm_head",
        "encoders once, 4 full passes",
        "prefix reuse",
        "prefix reuse, r = 50%, current",
        "prefix reuse, r = 50%, lagged",
        "prefix reuse, r = 80%, current",
        "prefix reuse, r = 80%, lagged",
    ]
    parts = " ".join(line.name for line in report.parts)
    for name in ("encoders", "prefill, full", "prefill, r = 80%", "cached tail", "LLM layers", "lm_head", "plain"):
        assert name in parts
    assert [bound.most for bound in report.bounds] == [1.10, 1.15, 1.15, 1.15]
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert set(data["steps"][0]) == {
        "name", "median_ms", "spread_ms", "tokens", "flops", "nbytes", "limit_ms", "efficiency"
    }  # fmt: skip
    assert set(data["bounds"][0]) == {"name", "ratio", "most", "ok"}
    assert set(data["kv_bytes"]) == {"full", "r = 50%", "r = 80%"}


def test_pruned_steps_have_the_tokens_of_their_rate_and_cost_less(report):
    by_name = {line.name: line for line in report.steps}
    assert by_name["prefix reuse"].tokens == 512
    assert by_name["prefix reuse, r = 50%, lagged"].tokens == 256
    assert by_name["prefix reuse, r = 80%, current"].tokens == 102
    order = ["release: 4 full passes, encoders each, no lm_head", "encoders once, 4 full passes", "prefix reuse"]
    order += ["prefix reuse, r = 50%, lagged", "prefix reuse, r = 80%, lagged"]
    flops = [by_name[name].flops for name in order]
    assert flops == sorted(flops, reverse=True)
    for rate in ("50%", "80%"):
        current, lagged = (by_name[f"prefix reuse, r = {rate}, {mode}"] for mode in ("current", "lagged"))
        assert current.flops > lagged.flops, "an observing pass is paid for"


def test_a_line_is_held_against_the_limits_of_its_own_round():
    slow, fast = Limits(1e9, 1e9), Limits(4e9, 4e9)
    times = Times((40.0, 10.0, 44.0), (slow, fast, slow))
    cost = Cost(flops=2e7, nbytes=1e7)
    assert times.limits_ms(cost) == (30.0, 7.5, 30.0)
    line = Line.of("x", Measured(lambda: None, cost), times)
    assert line.efficiency == 0.75
    assert (line.median_ms, line.spread_ms, line.limit_ms) == (40.0, 34.0, 30.0)
    bound = Bound.between("x / limit", times.milliseconds, times.limits_ms(cost), 1.3)
    assert bound.ratio == pytest.approx(4 / 3)
    assert not bound.ok
    assert Bound("y", 1.3, 1.3).ok


def test_calls_take_turns_after_one_that_is_not_counted(monkeypatch):
    monkeypatch.setattr("tracekit.bench.limits.SIDE", 8)
    monkeypatch.setattr("tracekit.bench.limits.COPIED_BYTES", 64)
    seen = []
    calls = {name: Measured(lambda name=name: seen.append(name), Cost(1, 1)) for name in "ab"}
    told = []
    times = take_turns(calls, LimitsProbe(torch.float32, "cpu"), "cpu", 3, lambda *given: told.append(given))
    assert "".join(seen) == "ab" * 4
    assert {len(one.milliseconds) for one in times.values()} == {3}
    assert all(limits.matrix_rate > 0 and limits.bandwidth > 0 for one in times.values() for limits in one.limits)
    assert told[-1] == ("measuring", 3, 3)


def test_a_narrow_decoder_is_held_to_no_bounds(report):
    assert report.bounds
    bench = object.__new__(bench_module._Bench)
    bench.policy = tiny_policy()
    assert bench.bounds((0.5,)) == ()


def test_weights_are_drawn_in_the_dtype_they_run_in_and_no_digest_is_taken(monkeypatch):
    monkeypatch.setattr("tracekit.model.policy.weights_digest", lambda _state: pytest.fail("hashes the weights"))
    policy = bench_module._random_policy(tiny_policy().config, bench_module.Precision("bfloat16"))
    assert policy.backbone.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert policy.backbone.norm.weight.dtype == torch.float32
    assert policy.precision.dtype == "bfloat16"
    assert not any(p.requires_grad for p in policy.parameters())
    assert all(torch.isfinite(p.to_dense() if p.is_mkldnn else p).all() for p in policy.parameters())


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a device that is not there")
def test_a_device_that_is_not_there_is_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"--device cuda: torch sees no such device here; use --device cpu") as caught:
        bench_model("mla-7b", device="cuda")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"preset": "mla-70b"}, "choose one of mla-7b, mla-1layer, reference"),
        ({"rates": (0.5, 1.0)}, "must lie between 0 and 1"),
        ({"device": "tpu"}, "--device tpu"),
    ],
)
def test_what_cannot_be_measured_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        bench_model(**{"preset": "mla-1layer", **given})
