"""What the capture hands over for a whole control step, and that asking for it changes nothing."""

import numpy as np
import pytest
import torch

from recorders.sim import Environment
from tests.eager import eager_forward
from tests.small import make_config, make_draws
from tracekit.capture import GROUPS, CaptureSpec
from tracekit.engine import Controller, StepOptions


@pytest.fixture(scope="module")
def observations():
    environment = Environment("close_box")
    first = environment.reset(7)
    return [first, environment.step(np.r_[0.05, 0, -0.05, first.state[3:9], 0.0]).observation]


def run(policy, config, observations, options=None):
    controller = Controller(policy, config, options)
    controller.reset(11)
    return [controller.step(observation) for observation in observations]


CAPTURE = StepOptions(capture=CaptureSpec.default(), encoded="rows")


@pytest.mark.parametrize("reuse", ["none", "encoders", "prefix_kv"])
@pytest.mark.parametrize("kind", ["none", "naive", "tri_stage"])
def test_with_capture_or_without_actions_are_bitwise_the_same(small_policy, observations, kind, reuse):
    config = make_config(kind, reuse)
    plain = run(small_policy, config, observations)
    captured = run(small_policy, config, observations, CAPTURE)
    for one, other in zip(plain, captured, strict=True):
        np.testing.assert_array_equal(one.samples, other.samples)
        np.testing.assert_array_equal(one.action, other.action)
        np.testing.assert_array_equal(one.kept, other.kept)
    assert captured[0].observables is not None
    assert (plain[0].observables is None) == (kind != "tri_stage")


def test_the_reference_policy_acts_the_same_with_capture(reference_policy, observations):
    (plain,) = run(reference_policy, make_config(), observations[:1])
    (captured,) = run(reference_policy, make_config(), observations[:1], CAPTURE)
    np.testing.assert_array_equal(plain.samples, captured.samples)


def literal_pass(policy, observation, draws, sample, step, kept=None, encoded=None):
    """Eager maps of pass `step` over the rows that `kept` (N_visual,) leaves; the positions of those rows; the layout.

    `encoded`: the pass whose FPS starts are used, where it is another one.
    """
    with torch.inference_mode():
        tokens = policy.tokenize(observation)
        prefix = policy.embed_prefix(tokens, tuple(map(int, draws.fps_starts[step if encoded is None else encoded])))
        rows = torch.cat([prefix.rows, policy.embed_tail(torch.from_numpy(sample), step)])
    mask = np.ones(tokens.layout.length, bool)
    if kept is not None:
        mask[tokens.layout.visual_positions] = kept
    positions = torch.from_numpy(np.flatnonzero(mask))
    return eager_forward(policy.backbone, rows[positions], positions), positions.numpy(), tokens.layout


def test_observables_of_pass_0_are_those_of_an_eager_forward(small_policy, observations):
    (result,) = run(small_policy, make_config(), observations[:1], CAPTURE)
    draws = make_draws(small_policy, observations[0])
    eager, _, layout = literal_pass(small_policy, observations[0], draws, draws.noise, 0)
    seen, visual = result.observables, layout.visual_positions
    assert seen.groups == GROUPS
    assert seen.attention.shape == (2, 4, 3, len(visual))
    assert seen.attention.dtype == np.float32
    for index, group in enumerate(GROUPS):
        rows = eager.attention[:, :, layout.group_positions(group)].mean(2)[..., visual]
        np.testing.assert_allclose(seen.attention[:, :, index], rows.numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(seen.norms["prenorm"], eager.residual[visual].abs().sum(-1).numpy(), rtol=1e-5)
    np.testing.assert_allclose(seen.norms["postnorm"], eager.hidden[visual].abs().sum(-1).numpy(), rtol=1e-5)
    with torch.inference_mode():
        prefix = small_policy.embed_prefix(small_policy.tokenize(observations[0]), tuple(map(int, draws.fps_starts[0])))
    np.testing.assert_array_equal(seen.patch, prefix.alignment.patch)


@pytest.mark.parametrize("reuse", ["none", "prefix_kv"])
@pytest.mark.parametrize("kind", ["none", "naive"])
def test_action_rows_of_later_passes_are_head_means_of_an_eager_forward(small_policy, observations, kind, reuse):
    (result,) = run(small_policy, make_config(kind, reuse), observations[:1], CAPTURE)
    draws = make_draws(small_policy, observations[0])
    assert result.action_rows.shape == (2, 2, 512)
    for step in range(1, small_policy.passes):
        kept = result.kept[step]
        eager, positions, layout = literal_pass(
            small_policy, observations[0], draws, result.samples[step - 1], step, kept, None if reuse == "none" else 0
        )
        index = {position: row for row, position in enumerate(positions)}
        rows = [index[p] for p in layout.group_positions("action")]
        columns = [index[p] for p in layout.visual_positions[kept]]
        expected = np.zeros((2, 512), np.float32)
        expected[:, kept] = eager.attention[:, :, rows][..., columns].mean((1, 2)).numpy()
        np.testing.assert_allclose(result.action_rows[step - 1], expected, rtol=0, atol=1e-6)
        assert not result.action_rows[step - 1][:, ~kept].any()


def test_minimal_capture_takes_no_later_rows(small_policy, observations):
    options = StepOptions(capture=CaptureSpec.minimal())
    (result,) = run(small_policy, make_config(), observations[:1], options)
    assert result.action_rows is None
    assert result.observables is not None
    assert result.encoded == ()
