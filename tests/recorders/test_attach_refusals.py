"""What cannot be recorded gets one line that says why and what to do, and nothing is left on the policy."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import recorders
from tests.release_double import double as double_module
from tests.release_double.double import double_of
from tests.release_double.runs import fingerprint, make_inputs, record
from tests.tracekit.model.release_files import IDS, release_policy
from tracekit import keys
from tracekit.actions import ActionSpec
from tracekit.errors import PolicyError
from tracekit.policy import Precision
from tracekit.store import Trace


@pytest.fixture(scope="module")
def policy():
    return release_policy().freeze(Precision())


@pytest.fixture
def mla(policy):
    return double_of(policy, {"close box": IDS})


class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv_proj = nn.Linear(4, 12)


def refused(mla, policy, tmp_path, **options) -> str:
    before = fingerprint(mla)
    with pytest.raises(PolicyError) as caught:
        record(mla, policy, tmp_path / str(len([*tmp_path.iterdir()])), seeds=(0,), **options)
    assert "\n" not in str(caught.value)
    assert fingerprint(mla) == before
    return str(caught.value)


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ({"head": "vlm.nothing.there"}, "vlm has no 'nothing'"),
        ({"head": "forward"}, "no torch module"),
        ({"heads": "vlm"}, "no site 'heads'"),
        ({"backbone": "vlm.final_layer"}, "no attention with separate q_proj, k_proj, v_proj"),
        ({"head": "vlm.proprio_embedder"}, "no noise like (3, 7)"),
        ({"predict": "vlm.ids"}, "vlm has no 'ids'"),
        ({"fps": ("vlm.projector_3d",)}, "chosen indices"),
        ({"centres": "vlm.projector_3d", "fps": ()}, "does not return (tokens, centres"),
        ({"image": "vlm.projector_3d", "point": "vlm.projector_2d"}, "256"),
    ],
)
def test_wrong_sites_get_one_line(mla, policy, tmp_path, sites, message):
    if message == "256":
        record(mla, policy, tmp_path / "t", seeds=(0,), sites=sites)  # both are 256 rows: a mere exchange of names
        layout = Trace.open(tmp_path / "t").episode("only").info.attributes["layout"]
        assert [name for name, *_ in layout][1:3] == ["image.front", "point"]
        return
    assert message in refused(mla, policy, tmp_path, sites=sites)


def test_a_model_without_llama_shaped_attention_is_refused(mla, policy, tmp_path):
    for layer in mla.vlm.llm_backbone.llm.model.layers:
        layer.self_attn = Fused()
    assert "no LLaMA-shaped decoder" in refused(mla, policy, tmp_path)


def test_attention_that_cannot_be_rebuilt_is_refused(mla, policy, tmp_path):
    attention = mla.vlm.llm_backbone.llm.model.layers[0].self_attn
    attention.q_norm = nn.Identity()
    assert "normalises queries or keys" in refused(mla, policy, tmp_path)
    del attention.q_norm
    attention.config._attn_implementation = "flex_attention"
    assert 'attn_implementation="sdpa"' in refused(mla, policy, tmp_path)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch.compile's own imports
def test_a_compiled_module_is_refused(mla, policy, tmp_path):
    whole = mla.vlm.llm_backbone
    mla.vlm.llm_backbone = torch.compile(whole)
    assert "vlm.llm_backbone is compiled by torch.compile" in refused(mla, policy, tmp_path)
    mla.vlm.llm_backbone = whole
    whole.llm.model.compile()
    assert "vlm.llm_backbone.llm.model is compiled" in refused(mla, policy, tmp_path)


def test_what_does_not_fit_is_refused(mla, policy, tmp_path):
    other_spec = SimpleNamespace(action_spec=ActionSpec())
    assert "action_spec (rot6d) has 10" in refused(mla, other_spec, tmp_path)
    other = release_policy(intermediate_size=56).freeze(Precision())
    assert "load both from the same checkpoint" in refused(mla, policy, tmp_path, identity=other.identity)
    assert "embeds 1 images per pass" in refused(mla, policy, tmp_path, views=("front", "wrist"))


def test_another_sampler_is_refused(mla, policy, tmp_path, monkeypatch):
    monkeypatch.setattr(double_module, "alpha_bars", lambda: np.linspace(0.99, 0.01, 100))
    with pytest.raises(PolicyError, match="DDIM successor of pass 0"):
        record(mla, policy, tmp_path / "t", seeds=(0,))


def test_autocast_is_recorded_as_what_it_is(mla, policy, tmp_path):
    with torch.autocast("cpu", torch.bfloat16):
        assert 'pass dtype="bfloat16"' in refused(mla, policy, tmp_path)
        torch.manual_seed(3)
        alone = mla.predict_action_diff(**make_inputs())
        torch.manual_seed(3)
        [action] = record(mla, policy, tmp_path / "bf16", seeds=(0,), dtype="bfloat16")
    assert action.tobytes() == alone.tobytes()
    trace = Trace.open(tmp_path / "bf16")
    assert trace.attributes["execution"]["dtype"] == "bfloat16"
    sample = trace.episode("only").read(keys.ACTION_SAMPLES, 0)[-1]
    assert np.abs(sample - mla.unclipped.float().numpy()).max() <= 1e-2 * np.abs(sample).max()


def test_recording_twice_at_once_is_refused(mla, policy, tmp_path):
    with (
        recorders.attach(mla, tmp_path / "one", action_spec=policy.action_spec),
        pytest.raises(PolicyError, match="already"),
    ):
        record(mla, policy, tmp_path / "two")
    assert not (tmp_path / "two").exists()
    record(mla, policy, tmp_path / "three", seeds=(0,))
