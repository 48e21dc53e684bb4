"""What the capture presets take beside group rows, against whole attention matrices; and what they cost in bytes."""

import numpy as np
import pytest
import torch

from recorders import Recorder
from recorders.sim import Environment
from tests.eager import eager_forward
from tests.small import make_config, make_draws, make_policy
from tracekit import keys
from tracekit.bench import bench_capture
from tracekit.capture import PRESETS, CaptureSpec
from tracekit.capture.transfer import HostCopies
from tracekit.engine import Controller, StepOptions
from tracekit.errors import ConfigError
from tracekit.sizes import shapes_of, step_bytes
from tracekit.store import Trace


@pytest.fixture(scope="module")
def observation():
    return Environment("close_box").reset(7)


@pytest.mark.parametrize("reuse", ["none", "prefix_kv"])
def test_everything_that_full_takes_is_that_of_an_eager_forward(small_policy, observation, reuse):
    controller = Controller(small_policy, make_config("none", reuse), StepOptions(CaptureSpec.full(), "rows"))
    controller.reset(11)
    result = controller.step(observation)
    draws = make_draws(small_policy, observation)
    with torch.inference_mode():
        tokens = small_policy.tokenize(observation)
        prefix = small_policy.embed_prefix(tokens, tuple(map(int, draws.fps_starts[0])))
        rows = torch.cat([prefix.rows, small_policy.embed_tail(torch.from_numpy(draws.noise), 0)])
    layout, positions = tokens.layout, torch.arange(len(rows))
    visual, text = layout.visual_positions, layout.group_positions("text")
    used = layout.span("action").stop  # with a cache, the inert tail row is not fed
    eager = eager_forward(small_policy.backbone, rows, positions)
    seen, extras = result.observables, result.extras
    head_mean = eager.attention.mean(1)
    np.testing.assert_allclose(seen.last_row, head_mean[:, text[-1]][:, visual], rtol=0, atol=1e-6)
    whole = eager.attention[:, :, : layout.prefix_length]
    np.testing.assert_allclose(seen.mean_all_rows, whole.mean((1, 2))[:, visual], rtol=0, atol=1e-6)
    entropy = torch.special.entr(whole).sum(-1).mean((1, 2))
    np.testing.assert_allclose(extras["attention_entropy"], entropy, rtol=1e-4)
    maps = extras["maps"].astype(np.float32)[:, :, :used, :used]
    np.testing.assert_allclose(maps, eager.attention[:, :, :used, :used], rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(extras["hidden/block"][-1, :used], eager.residual[:used], rtol=1e-3, atol=1e-4)
    head = small_policy.llm_backbone.llm.lm_head
    logits = head(eager.hidden[visual]).abs().sum(-1)
    np.testing.assert_allclose(seen.norms["logits"], logits, rtol=1e-4)
    layer = small_policy.backbone.layers[0]
    with torch.inference_mode():
        x = layer.input_layernorm(rows)
        size = small_policy.backbone.head_dim
        q, k = (p(x).view(len(x), -1, size).transpose(0, 1) for p in (layer.self_attn.q_proj, layer.self_attn.k_proj))
        products = q @ k.repeat_interleave(len(q) // len(k), 0).mT / size**0.5
    np.testing.assert_allclose(seen.qk_text_layer0, products[:, text][..., visual].mean((0, 1)), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("reuse", ["none", "prefix_kv"])
def test_actions_are_bitwise_the_same_under_every_preset(observation, dtype, reuse):
    policy = make_policy(dtype=dtype)
    outcomes = set()
    for spec in (None, *map(CaptureSpec.preset, PRESETS)):
        controller = Controller(policy, make_config("none", reuse), StepOptions(spec, "rows" if spec else "none"))
        controller.reset(11)
        outcomes.add(controller.step(observation).samples.tobytes())
    assert len(outcomes) == 1


@pytest.mark.parametrize("name", PRESETS)
def test_the_bytes_that_are_announced_are_those_that_are_stored(tmp_path, small_policy, observation, name):
    controller, spec = Controller(small_policy, make_config()), CaptureSpec.preset(name)
    shapes = shapes_of(small_policy, small_policy.tokenize(observation))
    with (
        Recorder(tmp_path / "trace", controller, spec) as recorder,
        recorder.episode("close_box", observation.instruction, episode_id="e") as episode,
        episode.step(observation) as step,
    ):
        step.action = controller.act(observation)[0]
    stored = Trace.open(tmp_path / "trace").episode("e")
    assert step_bytes(shapes, observation, spec) == {key: stored.spec(key).row_nbytes for key in stored}


def test_a_part_of_the_layers_and_heads_has_the_bits_of_all(small_policy, observation):
    def observables(spec):
        controller = Controller(small_policy, make_config(), StepOptions(spec))
        controller.reset(11)
        return controller.step(observation).observables

    everything = observables(CaptureSpec.default())
    part = observables(CaptureSpec("part", groups=("action",), layers=(1,), heads=(0, 2), last_row=False))
    assert part.groups == ("action",)
    assert part.attention.shape == (*everything.attention.shape[:2], 1, 512)
    assert part.attention[1, [0, 2], 0].tobytes() == everything.attention[1, [0, 2], 2].tobytes()
    assert np.isnan(part.attention[0]).all()
    assert np.isnan(part.attention[1, [1, 3]]).all()


def test_a_live_pruner_is_shown_what_it_requires_and_nothing_else(small_policy, observation):
    controller = Controller(small_policy, make_config("sp_vla", fps="pinned"))
    controller.reset(11)
    seen = controller.step(observation).observables
    assert seen.mean_all_rows.shape[1] == 512
    assert seen.images.shape == (1, *observation.images["front"].shape)
    assert seen.attention.size == 0
    assert seen.norms == {}
    assert seen.last_row is None


def test_presets_grow_and_stay_below_their_limit():
    report = bench_capture("mla-7b")
    totals = [report.totals[name] for name in PRESETS]
    assert totals == sorted(totals)
    assert report.totals["default"] <= 20e6
    assert 860e6 < report.eager_per_pass < 875e6
    assert set(bench_capture("reference").by_capture) == set(PRESETS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"groups": ("text", "text")}, "capture.groups"),
        ({"norms": ("raw",)}, "capture.norms"),
        ({"layers": ()}, "capture.layers"),
        ({"layers": (2, 1)}, "capture.layers"),
        ({"maps": "some"}, "capture.maps"),
        ({"embeddings": "some"}, "capture.embeddings"),
    ],
)
def test_a_specification_that_cannot_be_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        CaptureSpec(**changes)


def test_unknown_presets_and_layers_that_are_not_there_are_refused(small_policy, observation):
    with pytest.raises(ConfigError, match="minimal, default, baselines, full"):
        CaptureSpec.preset("deluxe")
    controller = Controller(small_policy, make_config(), StepOptions(CaptureSpec(layers=(90,))))
    with pytest.raises(ConfigError, match=r"by the capture: the policy has layers 0 to 1, not 90"):
        controller.step(observation)


class FakeStream:
    """A stream that keeps its copies until somebody waits for its event."""

    def __init__(self, log):
        self.log = log

    def wait_stream(self, other):
        self.log.append(f"wait for {other}")

    def record_event(self):
        self.log.append("event")
        return self

    def synchronize(self):
        self.log.append("synchronize")


class FakeCuda:
    def __init__(self):
        self.log = []

    def Stream(self, _device):
        return FakeStream(self.log)

    def current_stream(self):
        return "the policy's stream"

    def stream(self, stream):
        log = self.log

        class Entered:
            def __enter__(self):
                log.append("copy")

            def __exit__(self, *_):
                log.append("copied")

        return Entered()


def test_copies_wait_for_the_policy_and_are_waited_for_once(monkeypatch):
    cuda = FakeCuda()
    copies = HostCopies(torch.device("cuda"), cuda)
    monkeypatch.setattr(copies, "_pinned", torch.empty_like)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _self, _stream: cuda.log.append("keep"))
    values = [torch.arange(3.0), torch.ones(2)]
    found = [copies.start(one) for one in values]
    assert "synchronize" not in cuda.log
    copies.wait()
    copies.wait()
    assert cuda.log == [*(["wait for the policy's stream", "copy", "copied", "keep", "event"] * 2), "synchronize"]
    assert all(torch.equal(one, other) and one is not other for one, other in zip(found, values, strict=True))


def test_on_the_cpu_nothing_is_copied():
    values = torch.arange(3.0)
    copies = HostCopies(torch.device("cpu"))
    assert copies.start(values).data_ptr() == values.data_ptr()
    copies.wait()


def test_the_bound_of_half_precision_holds_in_bfloat16(observation):
    """Rows rebuilt from bf16 projections against an eager pass in float32 of the same weights: within 2e-2."""
    rows = {}
    for dtype in ("float32", "bfloat16"):
        controller = Controller(make_policy(dtype=dtype), make_config(), StepOptions(CaptureSpec.default()))
        controller.reset(11)
        rows[dtype] = controller.step(observation).observables.attention
    assert np.abs(rows["bfloat16"] - rows["float32"]).max() <= 2e-2


def test_keys_of_hidden_states_name_their_site():
    assert keys.hidden("mlp") == "hidden/mlp"
