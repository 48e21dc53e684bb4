"""Reuse across steps and of caches, and mask-only execution: each against the definition written out."""

from dataclasses import replace

import numpy as np
import pytest

from tests.small import make_config, make_draws
from tests.tracekit.engine.support import UID, first_observations, full_masks, literal_step, relative, run
from tracekit.capture import AttentionTap
from tracekit.config import Configuration
from tracekit.engine import Controller, decision_shape
from tracekit.errors import ConfigError
from tracekit.pruning import PRUNERS, DecisionKey, decision_digest, reduce


def make(kind="tri_stage", *, observe=None, drop="rows", fps=None, kv="reprefill", reuse="none", **pruner):
    pruner = {"background_rate": 0.5, **pruner} if kind == "tri_stage" else pruner
    fps = fps or ("pinned" if reuse == "prefix_kv" else "recorded")
    table = make_config(kind, fps=fps, **pruner).to_json()
    table["reuse"] = {"kind": reuse, "kv": kv, "fps": fps}
    table["execution"] |= {"drop": drop}
    if observe is not None:
        table["observe"] = observe
    return Configuration.from_table(table, "make")


@pytest.fixture(scope="module")
def observations():
    return first_observations(6)


@pytest.fixture
def watched(monkeypatch):
    """Counts the steps that are observed."""
    count = []
    enter = AttentionTap.__enter__

    def spy(self):
        count.append(1)
        return enter(self)

    monkeypatch.setattr(AttentionTap, "__enter__", spy)
    return count


def test_a_mask_stays_until_the_next_decision(small_policy, observations, watched):
    """Decided at steps 2 and 5 from their own pass 0; step 1 only begins the smoothing; in between nothing is seen."""
    config = make(reuse="mask", observe={"refresh_every": 3})
    controller = Controller(small_policy, config)
    controller.reset(UID)
    results, seen = [], []
    for observation in observations:
        before = len(watched)
        results.append(controller.step(observation))
        seen.append(len(watched) > before)
    assert seen == [True, True, False, False, True, False]
    assert [result.pruned_from for result in results] == [3, 1, 0, 0, 1, 0]
    shape, rule = decision_shape(results[0].layout), PRUNERS["tri_stage"]
    state = rule.initial_state(config.pruner, shape)
    for step, result in enumerate(results, start=1):
        if seen[step - 1]:
            scores = reduce(result.observables, config.pruner.reduction, shape)
            expected, state = rule.decide(scores, state, config.pruner, DecisionKey(0, UID, step), shape)
        if step > 1:
            assert decision_digest([result.decision]) == decision_digest([expected])
            assert not result.kept[-1].all()
    for index in (2, 3, 5):
        draws = make_draws(small_policy, observations[index], step=index + 1)
        expected = literal_step(small_policy, observations[index], draws, kept=full_masks(results[index]))
        assert relative(results[index].samples, expected) < 1e-5


def test_a_lagged_mask_is_decided_after_the_unpruned_steps(small_policy, observations, watched):
    config = make(reuse="mask", observe={"mode": "lagged", "refresh_every": 3})
    results = run(small_policy, config, observations)
    assert [result.kept.all() for result in results] == [True, False, False, True, False, False]
    assert len(watched) == 2
    for start in (1, 4):
        assert results[start].decision is not results[start - 1].decision
        assert results[start + 1].decision is results[start].decision
    plain = run(small_policy, make(observe={"mode": "lagged"}), observations[:2])
    np.testing.assert_array_equal(results[1].samples, plain[1].samples)


@pytest.mark.parametrize("mode", ["current", "lagged"])
def test_a_mask_that_stays_for_one_step_changes_nothing(small_policy, observations, mode):
    reused = run(small_policy, make(reuse="mask", observe={"mode": mode, "refresh_every": 1}), observations[:3])
    observe = {"mode": mode, **({"refresh_every": 1} if mode == "lagged" else {})}
    for one, other in zip(reused, run(small_policy, make(observe=observe), observations[:3]), strict=True):
        np.testing.assert_array_equal(one.samples, other.samples)
        np.testing.assert_array_equal(one.kept, other.kept)


def test_random_masks_stay_as_well(small_policy, observations):
    results = run(small_policy, make("naive", reuse="mask", observe={"refresh_every": 2}), observations[:5])
    masks = [result.kept[0] for result in results]
    assert masks[0].all()
    assert [np.array_equal(masks[i], masks[i + 1]) for i in range(1, 4)] == [True, False, True]


def test_every_second_action_is_repeated_without_a_pass(small_policy, observations, monkeypatch):
    calls = []
    embed = type(small_policy).embed_tail
    monkeypatch.setattr(
        type(small_policy), "embed_tail", lambda self, *given: (calls.append(1), embed(self, *given))[1]
    )
    results = run(small_policy, make(reuse="skip_frame"), observations)
    assert len(calls) == 3 * small_policy.passes
    assert [result.repeated for result in results] == [False, True] * 3
    for ran, again in zip(results[::2], results[1::2], strict=True):
        np.testing.assert_array_equal(ran.action, again.action)
        np.testing.assert_array_equal(ran.kept, again.kept)
        assert again.times_ns.sum() == 0
    # what runs is what would run if the episode had only those steps, its draws keyed by the steps that they are
    controller = Controller(small_policy, make())
    memory = None
    for step in (1, 3, 5):
        controller.reset(UID, steps=step - 1, memory=memory)
        result = controller.step(observations[step - 1])
        memory = result.memory
        np.testing.assert_array_equal(result.samples, results[step - 1].samples)


def test_a_refresh_due_at_a_repeated_step_is_made_up_for(small_policy, observations):
    config = make(reuse="skip_frame", observe={"mode": "lagged", "refresh_every": 3})
    results = run(small_policy, config, observations)
    assert [bool(result.kept.all()) for result in results[::2]] == [True, False, True]  # due at steps 1 and 4


def test_rows_cut_out_of_the_cache_have_been_seen(small_policy, observations):
    """`kv = drop`: the tail no longer sees the dropped rows, and the kept rows have; `reprefill`: neither."""
    dropped = run(small_policy, make(reuse="prefix_kv", kv="drop"), observations[:2])
    anew = run(small_policy, make(reuse="prefix_kv"), observations[:2])
    draws = make_draws(small_policy, observations[1], step=2)
    expected = literal_step(
        small_policy, observations[1], draws, kept=full_masks(dropped[1]), pinned=True, cut_cache=True
    )
    assert relative(dropped[1].samples, expected) < 1e-5
    np.testing.assert_array_equal(dropped[1].kept, anew[1].kept)
    assert relative(dropped[1].samples, anew[1].samples) > 1e-4
    assert dropped[1].times_ns.sum() < anew[1].times_ns.sum() * 100  # both were timed


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"observe": {"mode": "lagged"}},
        {"reuse": "prefix_kv"},
        {"reuse": "prefix_kv", "kv": "drop"},
        {"reuse": "prefix_kv", "observe": {"mode": "lagged"}},
        {"kind": "naive", "rate": 0.7},
    ],
    ids=str,
)
def test_masking_equals_dropping_to_rounding(small_policy, observations, options):
    rows = run(small_policy, make(**options), observations[:3])
    masked = run(small_policy, make(**options, drop="mask"), observations[:3])
    for one, other in zip(rows, masked, strict=True):
        np.testing.assert_array_equal(one.kept, other.kept)
        assert relative(one.samples, other.samples) < 1e-5
        if one.observables is not None:
            stays = one.kept[0]
            np.testing.assert_allclose(
                other.observables.attention[..., stays], one.observables.attention[..., stays], atol=1e-6
            )
            assert not np.nan_to_num(other.observables.attention[..., ~stays]).any()
    assert not rows[1].kept.all()


def test_masking_computes_all_rows(small_policy, observations, monkeypatch):
    fed, forward = [], type(small_policy).forward

    def spy(self, rows, *given, **options):
        fed.append(len(rows))
        return forward(self, rows, *given, **options)

    monkeypatch.setattr(type(small_policy), "forward", spy)
    (result,) = run(small_policy, make("naive", drop="mask"), observations[:1])
    assert set(fed) == {result.layout.length}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kv": "drop"}, 'reuse.kv = "drop" cuts rows out of a cache, and reuse.kind = "none" keeps none'),
        ({"reuse": "prefix_kv", "kv": "drop", "observe": {"mode": "lagged"}}, "only a pruner that observes it has one"),
        ({"kind": "naive", "reuse": "prefix_kv", "kv": "drop"}, "only a pruner that observes it has one"),
        ({"reuse": "mask", "fps": "pinned", "budget": "hard_topk"}, "indices mean nothing at another step"),
        ({"observe": {"refresh_every": 3}}, 'read by observe.mode = "lagged" and by reuse.kind = "mask" only'),
        ({"observe": {"feedback": "recorded"}}, 'observe.feedback is read by observe.mode = "lagged" only'),
        ({"kind": "naive", "observe": {"refresh_every": 3}}, "has no meaning for pruner 'naive'"),
        ({"kind": "naive", "reuse": "mask", "observe": {"mode": "lagged"}}, "has no meaning for pruner 'naive'"),
    ],
    ids=str,
)
def test_combinations_without_meaning_are_refused(options, words):
    with pytest.raises(ConfigError) as caught:
        make(**options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_policy_that_cannot_mask_is_refused(small_policy, observations, monkeypatch):
    forward = type(small_policy).forward
    monkeypatch.setattr(
        small_policy, "forward", lambda rows, positions, cache=None: forward(small_policy, rows, positions, cache)
    )
    with pytest.raises(ConfigError, match=r"needs a policy whose forward takes visible="):
        run(small_policy, make("naive", drop="mask"), observations[:1])
    assert len(run(small_policy, make("naive"), observations[:1])) == 1


def test_the_refresh_interval_of_a_kept_mask_is_part_of_the_digest():
    one, other = (make("naive", reuse="mask", observe={"refresh_every": every}) for every in (3, 4))
    assert one.digest != other.digest
    assert Configuration.from_table(one.to_json(), "again") == one
    plain = make("naive")
    assert replace(plain, observe=one.observe, reuse=one.reuse).digest == one.digest
