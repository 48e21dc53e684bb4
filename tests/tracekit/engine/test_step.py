"""One control step against the same step written out: a plain loop over the denoise passes, no caches, no gathering."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tracekit
from tests.small import make_config, make_draws, make_policy
from tests.tracekit.engine.support import UID, first_observations, full_masks, literal_step, relative, run
from tracekit.camera import Camera
from tracekit.capture import CaptureSpec
from tracekit.engine import Controller, StepOptions, control_step, decision_shape, draw
from tracekit.engine import forward as forward_module
from tracekit.engine.forward import invariant_rows
from tracekit.errors import ConfigError, PolicyError
from tracekit.layout import PatchAlignment
from tracekit.profiling import StageClock
from tracekit.pruning import DecisionKey


@pytest.fixture(scope="module")
def observations():
    return first_observations(3)


@pytest.fixture(scope="module")
def observation(observations):
    return observations[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_unpruned_step_is_the_literal_loop_bit_by_bit(observation, dtype):
    policy = make_policy(dtype=dtype)
    draws = make_draws(policy, observation)
    (result,) = run(policy, make_config(), [observation])
    expected = literal_step(policy, observation, draws)
    np.testing.assert_array_equal(result.samples, expected)
    np.testing.assert_array_equal(result.unclipped, expected[-1])
    np.testing.assert_array_equal(result.action, policy.read_out(torch.from_numpy(expected[-1])).numpy())
    assert result.kept.all()
    assert result.pruned_from == policy.passes
    assert not result.decision.pruned


def test_the_reference_policy_takes_the_literal_step(reference_policy, observation):
    (result,) = run(reference_policy, make_config(), [observation])
    draws = make_draws(reference_policy, observation)
    np.testing.assert_array_equal(result.samples, literal_step(reference_policy, observation, draws))


@pytest.mark.parametrize("reuse", ["none", "encoders", "prefix_kv"])
@pytest.mark.parametrize("kind", ["none", "naive", "tri_stage"])
def test_dropped_rows_keep_their_positions_so_dropping_equals_masking_keys(small_policy, observations, kind, reuse):
    results = run(small_policy, make_config(kind, reuse), observations[:2])
    for step, (result, observation) in enumerate(zip(results, observations, strict=False), start=1):
        draws = make_draws(small_policy, observation, step=step)
        masks = full_masks(result)
        expected = literal_step(small_policy, observation, draws, kept=masks, pinned=reuse != "none")
        assert relative(result.samples, expected) < 1e-5
    assert results[-1].kept.all() == (kind == "none")
    if kind != "none":  # the comparison can tell a dropped row from one that is there
        assert relative(result.samples, literal_step(small_policy, observation, draws, pinned=reuse != "none")) > 1e-4


def test_positions_are_those_of_the_unpruned_sequence(small_policy, observation, monkeypatch):
    seen = []

    def spy(rows, positions, cache=None):
        seen.append(positions.numpy().copy())
        return type(small_policy).forward(small_policy, rows, positions, cache)

    monkeypatch.setattr(small_policy, "forward", spy, raising=False)
    (result,) = run(small_policy, make_config("naive", rate=0.8), [observation])
    for positions, mask in zip(seen, full_masks(result), strict=True):
        np.testing.assert_array_equal(positions, np.flatnonzero(mask))


def test_pinned_encoders_are_bitwise_the_full_run_with_pinned_starts(small_policy, observation):
    for kind in ("none", "naive", "tri_stage"):
        (cached,) = run(small_policy, make_config(kind, "encoders"), [observation])
        (full,) = run(small_policy, make_config(kind, "none", "pinned"), [observation])
        np.testing.assert_array_equal(cached.samples, full.samples)
    (free,) = run(small_policy, make_config(), [observation])
    assert not np.array_equal(free.samples, full.samples)


def test_a_kept_prefix_changes_nothing_but_rounding(small_policy, observation):
    (cached,) = run(small_policy, make_config("none", "prefix_kv"), [observation])
    (full,) = run(small_policy, make_config("none", "encoders"), [observation])
    assert relative(cached.samples, full.samples) < 1e-5
    (free,) = run(small_policy, make_config(), [observation])
    assert relative(free.samples, full.samples) > 1e-4  # other points would be noticed


def test_encoders_run_once_where_they_are_reused(small_policy, observation):
    options = StepOptions(encoded="rows")
    for reuse, times in (("none", small_policy.passes), ("encoders", 1), ("prefix_kv", 1)):
        (result,) = run(small_policy, make_config("none", reuse), [observation], options=options)
        assert len(result.encoded) == times
        for record in result.encoded:
            assert record.rows_digest == hashlib.sha256(record.rows.tobytes()).digest()


class Scrambled:
    """A policy whose padding rows, those after the action, hold numbers of their own."""

    def __init__(self, policy, factor):
        self._policy, self._factor = policy, factor

    def __getattr__(self, name):
        return getattr(self._policy, name)

    def forward(self, rows, positions, cache=None):
        used = 1 + self._policy.action_shape[0]
        if cache is not None and cache.length:
            rows = torch.cat([rows[:used], rows[used:] * self._factor])
        return self._policy.forward(rows, positions, cache)


def test_padding_of_the_tail_does_not_reach_the_numbers(small_policy, observation, monkeypatch):
    config = make_config("none", "prefix_kv")
    (padded,) = run(small_policy, config, [observation])
    (scrambled,) = run(Scrambled(small_policy, -3.0), config, [observation])
    np.testing.assert_array_equal(padded.samples, scrambled.samples)
    monkeypatch.setattr(forward_module, "invariant_rows", lambda rows: rows)
    (bare,) = run(small_policy, config, [observation])
    assert relative(padded.samples, bare.samples) < 1e-6


@given(st.integers(1, 200))
def test_tails_are_padded_to_a_row_count_that_was_measured_invariant(rows):
    padded = invariant_rows(rows)
    assert padded >= rows
    assert padded in (4, 8) or padded >= 12
    assert padded == min(count for count in (4, 8, *range(12, 201)) if count >= rows)


def test_point_masks_follow_the_alignment_of_each_pass(small_policy, observations):
    """With free FPS starts a point token of pass 1 is another point than that of pass 0."""
    result = run(small_policy, make_config("tri_stage"), observations[:2])[1]
    draws = make_draws(small_policy, observations[1], step=2)
    tokens = small_policy.tokenize(observations[1])
    n_2d = len(result.layout.image_positions)
    assert result.kept[0].all()  # the pass that is observed
    decision = result.decision
    for step in range(1, small_policy.passes):
        with torch.inference_mode():
            patch = small_policy.embed_prefix(tokens, tuple(map(int, draws.fps_starts[step]))).alignment.patch
        expected = [p < 0 or bool(decision.keep_3d_patches[p]) for p in patch]
        assert result.kept[step, n_2d:].tolist() == expected
        np.testing.assert_array_equal(result.kept[step, :n_2d], decision.keep_2d)
    assert not np.array_equal(result.kept[1], result.kept[2])
    pinned = run(small_policy, make_config("tri_stage", "encoders"), observations[:2])[1]
    np.testing.assert_array_equal(pinned.kept[1], pinned.kept[2])


@pytest.mark.parametrize("unprojected", ["drop", "random"])
def test_points_without_a_patch_follow_their_rule(small_policy, observations, unprojected):
    """A camera that sees half of the cloud leaves points without a patch."""
    shifted = [replace(seen, cameras={"front": replace(seen.cameras["front"], cx=200.0)}) for seen in observations[:2]]
    config = make_config("tri_stage", unprojected_points=unprojected, background_rate=0.0)
    result = run(small_policy, config, shifted)[1]
    tokens = small_policy.tokenize(shifted[1])
    draws = make_draws(small_policy, shifted[1], step=2)
    n_2d = len(result.layout.image_positions)
    for step in range(1, small_policy.passes):
        with torch.inference_mode():
            patch = small_policy.embed_prefix(tokens, tuple(map(int, draws.fps_starts[step]))).alignment.patch
        lost = result.kept[step, n_2d:][patch < 0]
        assert len(lost) > 20
        assert lost.any() == (unprojected == "random")


def test_the_cold_start_of_tri_stage_is_bitwise_the_unpruned_step(small_policy, observations):
    unpruned = run(small_policy, make_config(), observations[:2])
    pruned = run(small_policy, make_config("tri_stage"), observations[:2])
    np.testing.assert_array_equal(pruned[0].samples, unpruned[0].samples)
    assert not pruned[0].decision.pruned
    assert pruned[0].pruned_from == small_policy.passes
    assert pruned[1].decision.pruned
    assert pruned[1].pruned_from == 1
    np.testing.assert_array_equal(pruned[1].samples[0], unpruned[1].samples[0])  # pass 0 is observed, unpruned
    assert not np.array_equal(pruned[1].samples[1], unpruned[1].samples[1])


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.6, 0.9])
def test_naive_keeps_exactly_its_number_in_every_pass(small_policy, observation, rate):
    (result,) = run(small_policy, make_config("naive", rate=rate), [observation])
    n_2d = len(result.layout.image_positions)
    expected = round(256 * (1 - rate))
    assert result.kept[:, :n_2d].sum(axis=1).tolist() == [expected] * small_policy.passes
    assert result.kept[:, n_2d:].sum(axis=1).tolist() == [expected] * small_policy.passes
    assert result.pruned_from == 0


def test_memory_is_carried_over_the_steps_and_resumes_in_the_middle(small_policy, observations):
    config = make_config("tri_stage", "prefix_kv", background_rate=0.5)
    whole = run(small_policy, config, observations)
    controller = Controller(small_policy, config)
    controller.reset(UID, steps=2, memory=whole[1].memory)
    resumed = controller.step(observations[2])
    assert controller.steps == 3
    np.testing.assert_array_equal(resumed.kept, whole[2].kept)
    np.testing.assert_array_equal(resumed.samples, whole[2].samples)
    controller.reset(UID, steps=2)
    forgetful = controller.step(observations[2])
    smoothed, raw = whole[2].decision.indicators, forgetful.decision.indicators
    assert any(not np.array_equal(smoothed[name], raw[name], equal_nan=True) for name in smoothed)


def test_a_step_does_not_change_the_memory_that_it_was_given(small_policy, observations):
    config = make_config("tri_stage", "prefix_kv")
    first, *_ = run(small_policy, config, observations[:1])
    before = {name: np.array(getattr(first.memory, name)) for name in first.memory.__dataclass_fields__}
    controller = Controller(small_policy, config)
    for _ in range(2):
        controller.reset(UID, steps=1, memory=first.memory)
        again = controller.step(observations[1])
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(first.memory, name), value)
    assert again.memory is not first.memory


def test_leaves_cover_the_step(reference_policy, observations):
    """What no stage claims is shown as `other`; it must stay below a twentieth. The best of three steps is taken."""
    results = run(reference_policy, make_config("tri_stage", "encoders"), observations)
    shares = [result.times_ns.sum() / result.wall_ns for result in results]
    assert all(0 < share <= 1 for share in shares)
    assert max(shares) >= 0.95
    assert all((result.times_ns >= 0).all() for result in results)


def test_stages_are_charged_where_they_belong(small_policy, observations):
    result = run(small_policy, make_config("tri_stage", "prefix_kv"), observations[:2])[1]
    cost = dict(zip(tracekit.profiling.STAGES, result.times_ns, strict=True))
    for stage in ("encode", "stage3", "stage1", "stage2"):  # once a step
        assert cost[stage][0] > 0
        assert not cost[stage][1:].any()
    assert cost["observe"][0] > 0
    assert cost["compact"][1] > 0  # rows are gathered once, before the second prefill
    assert (cost["prefill"] > 0).tolist() == [True, True, False]
    assert (cost["denoise"] > 0).all()
    assert (cost["decode"] > 0).tolist() == [False, False, True]
    unobserved = run(small_policy, make_config("none"), observations[:1])[0]
    quiet = dict(zip(tracekit.profiling.STAGES, unobserved.times_ns, strict=True))
    assert not any(quiet[stage].any() for stage in ("observe", "stage3", "stage1", "stage2", "fuse", "compact"))


class Once:
    """A policy that denoises in a single pass."""

    passes = 1

    def __init__(self, policy):
        self._policy = policy

    def __getattr__(self, name):
        return getattr(self._policy, name)


def test_observing_needs_a_second_pass(small_policy, observation):
    with pytest.raises(ConfigError, match="at least 2 denoise passes"):
        run(Once(small_policy), make_config("tri_stage"), [observation])
    run(Once(small_policy), make_config("naive"), [observation])


def test_a_step_that_fails_leaves_no_hook_and_no_count(small_policy, observation, monkeypatch):
    def broken(hidden):
        raise PolicyError("no noise today")

    monkeypatch.setattr(small_policy, "read_noise", broken, raising=False)
    controller = Controller(small_policy, make_config("tri_stage"), StepOptions(CaptureSpec.default()))
    controller.reset(UID)
    with pytest.raises(PolicyError, match="no noise today"):
        controller.step(observation)
    assert controller.steps == 0  # the step can be taken again
    assert controller.last is None


def test_unusable_observations_are_refused_in_one_line(small_policy, observation):
    for bad, words in (
        (replace(observation, points=None), "point cloud"),
        (replace(observation, images={}), "no image of view"),
        (replace(observation, state=np.zeros(3)), "state has shape"),
    ):
        with pytest.raises(PolicyError, match=words):
            run(small_policy, make_config(), [bad])


def test_control_step_is_what_the_controller_runs(small_policy, observation):
    (result,) = run(small_policy, make_config("naive"), [observation])
    with torch.inference_mode():
        tokens = small_policy.tokenize(observation)
        draws = draw(small_policy, tokens, UID, 1)
    config, key = make_config("naive"), DecisionKey(0, UID, 1)
    direct = control_step(small_policy, tokens, config, draws, key, clock=StageClock(small_policy.passes))
    np.testing.assert_array_equal(direct.samples, result.samples)
    np.testing.assert_array_equal(direct.kept, result.kept)


def test_decisions_are_made_for_the_shape_of_the_layout(small_policy, observation):
    with torch.inference_mode():
        shape = decision_shape(small_policy.tokenize(observation).layout)
    assert (shape.n_2d, shape.n_3d, shape.views, shape.moving) == (256, 256, 1, (False,))


def test_exact_budgets_count_point_tokens(small_policy, observations):
    """`hard_topk` needs the patches of the point tokens at the step that it decides."""
    result = run(small_policy, make_config("tri_stage", "prefix_kv", budget="hard_topk", rate=0.7), observations[:2])[1]
    n_2d = len(result.layout.image_positions)
    assert result.kept[1:, :n_2d].sum(axis=1).tolist() == [77, 77]
    assert result.kept[1:, n_2d:].sum(axis=1).tolist() == [77, 77]


def test_fixtures_of_this_file_can_tell_points_from_patches(observation):
    camera: Camera = observation.cameras["front"]
    patch = camera.patches(observation.points)
    assert (PatchAlignment(patch).counts(256) > 0).sum() > 50
