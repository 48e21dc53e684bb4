import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tracekit.errors import PolicyError
from tracekit.model import CAMERAS, MLA, REFERENCE_WORDS, IdTable, WordTokenizer, initialise, reference
from tracekit.model.layers import Linear
from tracekit.policy import Policy, Precision, load_policy
from tracekit.weights import packaged_policy

from .conftest import WORDS, looking_down, make_observation, tiny_policy

SHARED = tiny_policy()


def run_step(policy: MLA, tokens, starts=(3, 5), noise_seed=0) -> torch.Tensor:
    """The literal control step: every pass anew, without cache."""
    sample = torch.randn(policy.action_shape, generator=torch.Generator().manual_seed(noise_seed))
    action = tokens.layout.span("action").slice
    for step in range(policy.passes):
        prefix = policy.embed_prefix(tokens, starts)
        rows = torch.cat([prefix.rows, policy.embed_tail(sample, step)])
        assert len(rows) == tokens.layout.length
        hidden = policy.forward(rows, torch.arange(len(rows)))
        sample = policy.advance(sample, policy.read_noise(hidden[action]), step)
    return sample


@pytest.mark.usefixtures("no_grad")
def test_a_control_step_is_finite_and_bitwise_repeatable(policy, observation):
    assert isinstance(policy, Policy)
    policy.freeze(Precision())
    tokens = policy.tokenize(observation)
    first, second = run_step(policy, tokens), run_step(policy, policy.tokenize(observation))
    assert torch.equal(first, second)
    assert torch.isfinite(first).all()
    action = policy.read_out(first)
    assert action.shape == (3, 10)
    assert action.dtype == torch.float64
    assert set(action[:, -1].tolist()) <= {0.0, 1.0}


@pytest.mark.usefixtures("no_grad")
def test_results_do_not_depend_on_where_inputs_lie_in_memory(policy, observation):
    def misplaced(array: np.ndarray) -> np.ndarray:
        room = np.empty(array.nbytes + 128, np.uint8)
        offset = -room.ctypes.data % 64 + array.itemsize
        copy = room[offset : offset + array.nbytes].view(array.dtype).reshape(array.shape)
        copy[:] = array
        assert copy.ctypes.data % 64 == array.itemsize
        return copy

    noise = np.random.default_rng(0).normal(size=(3, 10)).astype(np.float32)
    moved = replace(observation, points=misplaced(observation.points), state=misplaced(observation.state))
    first, second = (policy.embed_prefix(policy.tokenize(o), (3, 5)).rows for o in (observation, moved))
    assert torch.equal(first, second)
    first, second = (policy.embed_tail(torch.from_numpy(n), 0) for n in (noise.copy(), misplaced(noise)))
    assert torch.equal(first, second)


def test_layout_is_the_sequence_of_the_release_with_further_views_after_the_front(policy, observation):
    layout = policy.tokenize(observation).layout
    names = [(span.name, len(span)) for span in layout.spans]
    assert names == [
        ("bos", 1),
        ("point", 16),
        ("image.front", 256),
        ("image.wrist", 256),
        ("tactile", 1),
        ("text", 16),
        ("proprio", 1),
        ("timestep", 1),
        ("action", 3),
        ("tail", 1),
    ]
    assert tiny_policy(tactile_token=False).layout(4).find("tactile") is None


@pytest.mark.usefixtures("no_grad")
def test_prefix_rows_stand_where_the_layout_says(policy, observation):
    tokens = policy.tokenize(observation)
    prefix = policy.embed_prefix(tokens, (0, 1))
    rows, span = prefix.rows, tokens.layout.span
    embedded = policy.backbone.embed_tokens(tokens.text_ids)
    assert torch.equal(rows[span("bos").slice], embedded[:1])
    assert torch.equal(rows[span("text").slice], embedded[1:-1])
    assert not rows[span("tactile").slice].any()
    assert torch.equal(rows[span("proprio").slice][0], policy.proprio_embedder(tokens.inputs["proprio"][None])[0])
    wrist = policy.image_tokens(tokens.inputs["image.wrist"][None])[0]
    torch.testing.assert_close(rows[span("image.wrist").slice], wrist)
    assert prefix.centres.shape == (16, 3)
    tail = policy.embed_tail(torch.zeros(3, 10), 2)
    assert tail.shape == (5, 32)
    assert torch.equal(tail[-1], policy.backbone.embed_tokens(torch.tensor(policy.tokenizer.tail_id)))
    assert torch.equal(tail[0], policy.t_embedder(torch.tensor([policy.timesteps[2]]))[0])


@pytest.mark.usefixtures("no_grad")
def test_a_point_belongs_to_the_first_view_that_sees_it(policy):
    front, wrist = looking_down(x=0.6), looking_down()
    observation = make_observation(policy.config, cameras={"front": front, "wrist": wrist})
    prefix = policy.embed_prefix(policy.tokenize(observation), (0, 0))
    centres = prefix.centres.numpy()
    expected = np.where(front.patches(centres) >= 0, front.patches(centres), 256 + wrist.patches(centres))
    assert {True, False} == set((expected < 256).tolist()), "the scene must use both views"
    np.testing.assert_array_equal(prefix.alignment.patch, np.where(expected == 255, -1, expected))


@pytest.mark.usefixtures("no_grad")
def test_views_without_camera_are_passed_over_and_built_in_cameras_fill_in(policy):
    observation = make_observation(policy.config)
    assert (policy.embed_prefix(policy.tokenize(observation), (0, 0)).alignment.patch == -1).all()
    built_in = tiny_policy(cameras={"wrist": "rlbench_front"})
    cloud = observation.points + np.array([0.2, 0.0, 1.2], np.float32)
    tokens = built_in.tokenize(replace(observation, points=cloud))
    assert tokens.cameras == (None, CAMERAS["rlbench_front"])
    patch = built_in.embed_prefix(tokens, (0, 0)).alignment.patch
    assert (patch >= 256).any()
    assert built_in.tokenize(replace(observation, cameras={"wrist": looking_down()})).cameras[1] == looking_down()


def test_every_parameter_learns_from_the_action_but_the_vocabulary_head(policy, observation):
    tokens = policy.tokenize(observation)
    sample = run_step(policy, tokens)
    sample.square().mean().backward()
    silent = {name for name, p in policy.named_parameters() if p.grad is None or not p.grad.any()}
    dead_relu = {name for name in silent if "vision_tower_3d" in name}
    assert silent - dead_relu == {"llm_backbone.llm.lm_head.weight"}
    assert not any("proj" in name for name in dead_relu)


@pytest.mark.usefixtures("no_grad")
def test_bfloat16_keeps_a_float32_stream_and_stays_close(observation):
    exact, rounded = tiny_policy().freeze(Precision()), tiny_policy().freeze(Precision("bfloat16"))
    assert exact.identity == rounded.identity
    assert {m.weight.dtype for m in rounded.modules() if isinstance(m, Linear)} == {torch.bfloat16}
    assert rounded.backbone.norm.weight.dtype == torch.float32
    outputs = []
    for policy in (exact, rounded):
        tokens = policy.tokenize(observation)
        prefix = policy.embed_prefix(tokens, (3, 5))
        rows = torch.cat([prefix.rows, policy.embed_tail(torch.ones(3, 10) / 3, 0)])
        hidden = policy.forward(rows, torch.arange(len(rows)), policy.new_cache(len(rows)))
        assert rows.dtype == hidden.dtype == torch.float32
        outputs.append(policy.read_noise(hidden[tokens.layout.span("action").slice]))
        assert outputs[-1].dtype == torch.float32
    error = (outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max()
    assert 0 < error < 0.1


@pytest.mark.usefixtures("no_grad")
def test_bfloat16_rounds_state_and_noisy_action_as_the_release_does():
    policy = tiny_policy().freeze(Precision("bfloat16"))
    near = torch.full((3, 10), 1 / 3)
    assert torch.equal(policy.embed_tail(near, 0), policy.embed_tail(near.bfloat16().float(), 0))


@given(st.lists(st.floats(-3, 3, width=32), min_size=30, max_size=30))
@settings(deadline=None)
def test_read_out_clips_decides_the_gripper_and_restores_units(numbers):
    action = SHARED.read_out(torch.tensor(numbers).reshape(3, 10)).numpy()
    for row, given_row in zip(action, np.array(numbers, np.float32).reshape(3, 10), strict=True):
        clipped = [min(max(float(v), -1.0), 1.0) for v in given_row]
        expected = [(v + 1) / 2 * 1.0 - 0.5 for v in clipped[:3]] + clipped[3:9] + [float(clipped[9] >= 0.5)]
        np.testing.assert_allclose(row, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": None}, "needs a point cloud"),
        ({"points": np.zeros((64, 6), np.float32)}, r"shape \(64, 6\).*x, y, z only"),
        ({"points": np.zeros((60, 3), np.float32)}, r"shape \(60, 3\).*resample"),
        ({"points": np.full((64, 3), np.nan, np.float32)}, "NaN or Inf"),
        ({"state": np.zeros(7)}, r"state has shape \(7,\)"),
        ({"state": np.full(10, np.inf)}, "finite"),
        ({"images": {}}, "no image of view 'front'"),
        ({"images": {"front": np.zeros((224, 224), np.uint8)}}, "pass .* uint8 RGB"),
        ({"images": {"front": np.zeros((224, 224, 3), np.float32)}}, "'front' is float32"),
        ({"instruction": "close " * 40}, "takes 1 to 32; shorten it"),
    ],
)
def test_unusable_observations_get_one_line(policy, changes, message):
    with pytest.raises(PolicyError, match=message) as caught:
        policy.tokenize(make_observation(policy.config, **changes))
    assert "\n" not in str(caught.value)


def test_foreign_tokens_starts_and_samples_are_refused(policy, observation):
    tokens = policy.tokenize(observation)
    with pytest.raises(PolicyError, match="one index below each of"):
        policy.embed_prefix(tokens, (64, 0))
    with pytest.raises(PolicyError, match="one index below each of"):
        policy.embed_prefix(tokens, (1,))
    with pytest.raises(PolicyError, match="noisy action has shape"):
        policy.embed_tail(torch.zeros(1, 10), 0)
    with pytest.raises(PolicyError, match="not one of float32, bfloat16"):
        policy.freeze(Precision("float16"))
    policy.tokenizer = IdTable({"close the red box": [1, 999]})
    with pytest.raises(PolicyError, match="token id 999 is outside the vocabulary"):
        policy.tokenize(observation)


def test_reference_policy_is_registered_and_small():
    policy = load_policy("reference")
    identity = policy.identity
    assert identity.name == "reference"
    assert identity.trained
    assert identity.parameters < 4e6
    assert policy.action_shape == (1, 10)
    assert policy.passes == 8


@pytest.mark.parametrize("name", ["reference", "blind"])
def test_packaged_weights_are_small_and_their_papers_are_of_them(name):
    directory = packaged_policy(name)
    identity = load_policy(str(directory)).identity
    assert identity.trained
    assert identity.weights_digest in (directory / "MODEL_CARD.md").read_text("utf-8")
    assert identity.weights_digest == json.loads((directory / "training.json").read_text("utf-8"))["weights_digest"]
    assert (directory / "model.safetensors").stat().st_size <= 8e6


def random_policy():
    return initialise(MLA(reference(), WordTokenizer(REFERENCE_WORDS)), 0)


def test_random_weights_are_the_same_everywhere():
    policy = random_policy()
    assert not policy.identity.trained
    # Uniform draws of torch's CPU generator, scaled: the same bits on every machine.
    assert policy.identity.weights_digest == "6356d242fdc780e19cb4414ec64da99bc43daca50fa3d04d835c1295fb1db081"


@pytest.mark.usefixtures("no_grad")
def test_random_activations_are_not_degenerate():
    policy = random_policy().freeze(Precision())
    tokens = policy.tokenize(make_observation(reference(), instruction="close the red box"))
    prefix = policy.embed_prefix(tokens, (1, 2))
    for name in ("point", "image.front", "text"):
        rows = prefix.rows[tokens.layout.span(name).slice]
        assert 0.1 < float(rows.std()) < 10
        assert float((rows - rows.mean(0)).abs().mean()) > 0.01, "tokens must differ from each other"
    sample = run_step(policy, tokens)
    assert torch.isfinite(sample).all()
    assert float(sample.std()) > 0.1


def test_identity_tells_configurations_and_weights_apart():
    digests = {
        tiny_policy(**changes).identity.config_digest
        for changes in ({}, {"ddim_steps": 5}, {"tactile_token": False}, {"rope_theta": 500.0})
    }
    assert len(digests) == 4
    assert tiny_policy(seed=1).identity.weights_digest != tiny_policy(seed=2).identity.weights_digest
    assert tiny_policy(name="a").identity.config_digest == tiny_policy(name="b").identity.config_digest
    assert WordTokenizer(WORDS).size == tiny_policy().config.vocab_size
