"""bfloat16 as the release mixes it: held against the stand-in for the release under torch's own autocast."""

import pytest
import torch

from tests.release_double import encoders
from tests.release_double.double import double_of, preprocess, scaled
from tests.release_double.runs import make_inputs, observation_of
from tracekit.model import MLA
from tracekit.model.layers import Linear, _packs
from tracekit.model.points import group_points
from tracekit.policy import Precision

from .release_files import IDS, release_policy

WIDTHS = {"hidden_size": 128, "kv_heads": 4, "layers": 4, "intermediate_size": 344}
STARTS = (3, 5)


@pytest.fixture(scope="module")
def mla():
    return double_of(release_policy(**WIDTHS), {"close box": IDS})


def first_pass(policy: MLA, inputs, noise) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        tokens = policy.tokenize(observation_of(inputs))
        rows = torch.cat([policy.embed_prefix(tokens, STARTS).rows, policy.embed_tail(noise, 0)])
        hidden = policy.forward(rows, torch.arange(len(rows)))
        action = policy.read_noise(hidden[tokens.layout.span("action").slice])
    point = tokens.layout.span("point").slice
    return {"points": rows[point], "rows": rows, "hidden": hidden, "noise": action}


def first_pass_of_the_release(mla, inputs, noise, timestep, monkeypatch, *, autocast) -> dict[str, torch.Tensor]:
    starts = iter(STARTS)
    monkeypatch.setattr(encoders, "start_index", lambda _count: next(starts))
    seen = {}
    llm = mla.vlm.llm_backbone
    hooks = [
        llm.register_forward_pre_hook(lambda _m, _a, kw: seen.update(rows=kw["inputs_embeds"][0]), with_kwargs=True),
        llm.llm.model.norm.register_forward_hook(lambda _m, _a, out: seen.update(hidden=out[0])),
    ]
    state = torch.tensor(scaled(mla.config.state, inputs["cur_robot_state"]), dtype=torch.float32)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        _, predicted = mla.vlm.forward(
            noise[None],
            torch.tensor([timestep]),
            input_ids=torch.tensor([IDS]),
            images=preprocess(inputs["image"])[None],
            point_cloud=torch.from_numpy(inputs["pointcloud"])[None],
            proprio=state[None, None],
        )
    for hook in hooks:
        hook.remove()
    return {"points": seen["rows"][1:257], **seen, "noise": predicted[0].float()}


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def test_bfloat16_is_nearer_to_the_release_under_autocast_than_float32_is(mla, monkeypatch):
    inputs = make_inputs(3)
    policy = release_policy(**WIDTHS).freeze(Precision("bfloat16"))
    noise = torch.randn(policy.action_shape, generator=torch.Generator().manual_seed(1))
    ours = first_pass(policy, inputs, noise)
    exact, rounded = (
        first_pass_of_the_release(mla, inputs, noise, policy.timesteps[0], monkeypatch, autocast=autocast)
        for autocast in (False, True)
    )
    for name in ("rows", "hidden"):
        assert ours[name].dtype == rounded[name].dtype == torch.float32, "the residual stream is not rounded"
    assert distance(exact["points"], rounded["points"]) > 0.03, "rounding the distances changes the groups"
    for name in ("points", "rows", "hidden"):
        assert distance(ours[name], rounded[name]) < 0.2 * distance(exact[name], rounded[name]), name
        assert distance(ours[name], rounded[name]) < 1e-2, name
    assert torch.equal(ours["points"], rounded["points"]), "on a CPU, where ties go the same way, to the bit"
    assert distance(ours["noise"], rounded["noise"]) < 2e-2


def test_rounded_distances_choose_other_neighbours_of_the_same_centres():
    points = torch.from_numpy(make_inputs()["pointcloud"])
    exact, rounded = (group_points(points, STARTS, 81, dtype) for dtype in (torch.float32, torch.bfloat16))
    for one, other in zip(exact, rounded, strict=True):
        assert torch.equal(one.centres, other.centres)
        assert (one.neighbours.sort(-1).values != other.neighbours.sort(-1).values).any(-1).float().mean() > 0.5


packs = pytest.mark.skipif(not _packs(), reason="this CPU has no packed bfloat16 products")


@packs
@pytest.mark.parametrize("shape", [(1, 96), (4, 96), (119, 96), (3, 70, 96)])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_products_keep_their_bits(shape, bias):
    generator = torch.Generator().manual_seed(2)
    plain, packed = (Linear(96, 160, bias=bias).to(torch.bfloat16).requires_grad_(False) for _ in range(2))
    packed.load_state_dict(plain.state_dict())
    packed.pack()
    packed.pack()
    assert packed.weight.is_mkldnn
    assert torch.equal(packed.weight.to_dense(), plain.weight)
    x = torch.randn(shape, generator=generator)
    with torch.inference_mode():
        assert torch.equal(packed(x), plain(x))
        assert packed(x).shape == (*shape[:-1], 160)


@packs
def test_the_decoder_is_packed_in_bfloat16_alone():
    exact, rounded = (release_policy().freeze(Precision(dtype)) for dtype in ("float32", "bfloat16"))
    for policy, packed in ((exact, 0), (rounded, 7 * rounded.config.layers)):
        assert sum(p.is_mkldnn for p in policy.parameters()) == packed
        assert policy.identity == exact.identity


@packs
def test_packing_a_whole_decoder_changes_no_bit(monkeypatch):
    inputs = make_inputs(3)
    packed = release_policy(**WIDTHS).freeze(Precision("bfloat16"))
    monkeypatch.setattr(Linear, "pack", lambda _self: None)
    plain = release_policy(**WIDTHS).freeze(Precision("bfloat16"))
    noise = torch.randn(plain.action_shape, generator=torch.Generator().manual_seed(1))
    ours, theirs = first_pass(packed, inputs, noise), first_pass(plain, inputs, noise)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
