"""`observe = lagged`: the mask of a step comes from what the step before showed, so that every pass is pruned."""

import numpy as np
import pytest

from replay import Replay, replay_decisions
from tests.small import make_config, make_draws
from tests.tracekit.engine.support import UID, first_observations, full_masks, literal_step, relative, run
from tracekit.config import Configuration
from tracekit.engine import Controller, decision_shape
from tracekit.errors import ConfigError, TraceError
from tracekit.pruning import PRUNERS, DecisionKey, decision_digest, observed_patches, reduce

TRI_STAGE = PRUNERS["tri_stage"]


def lagged(reuse="prefix_kv", **observe):
    table = make_config("tri_stage", reuse, background_rate=0.5).to_json()
    return Configuration.from_table({**table, "observe": {"mode": "lagged", **observe}}, "lagged")


@pytest.fixture(scope="module")
def observations():
    return first_observations(4)


def test_every_pass_is_pruned_but_those_of_the_first_step_and_of_refreshes(small_policy, observations):
    results = run(small_policy, lagged(refresh_every=2), observations)
    unpruned = run(small_policy, make_config("none", "prefix_kv"), observations)
    for step in (0, 2):
        assert results[step].kept.all()
        assert not results[step].decision.pruned
        np.testing.assert_array_equal(results[step].samples, unpruned[step].samples)
    for step in (1, 3):
        assert results[step].decision.pruned
        assert results[step].pruned_from == 0
        assert not results[step].kept[0].all()
        np.testing.assert_array_equal(results[step].kept[0], results[step].kept[-1])


def test_decisions_are_those_of_the_rule_on_what_the_step_before_showed(small_policy, observations):
    """The episode written out: pass 0 of every step is reduced, and its observed patches are flagged."""
    config = lagged(reuse="none")
    results = run(small_policy, config, observations)
    shape = decision_shape(results[0].layout)
    state, scores, observed = TRI_STAGE.initial_state(config.pruner, shape), None, None
    for step, result in enumerate(results, start=1):
        key = DecisionKey(0, UID, step)
        decision, state = TRI_STAGE.decide(scores, state, config.pruner, key, shape, observed=observed)
        assert decision_digest([result.decision]) == decision_digest([decision])
        scores = reduce(result.observables, config.pruner.reduction, shape)
        kept = result.kept[0]
        flags = observed_patches(kept[: shape.n_2d], kept[shape.n_2d :], result.observables.patch)
        observed = None if kept.all() else flags
    assert not flags.all()
    assert flags.any()


def test_dropping_equals_masking_in_every_pass(small_policy, observations):
    for reuse in ("none", "prefix_kv"):
        result = run(small_policy, lagged(reuse), observations[:2])[1]
        draws = make_draws(small_policy, observations[1], step=2)
        expected = literal_step(
            small_policy, observations[1], draws, kept=full_masks(result), pinned=reuse == "prefix_kv"
        )
        assert relative(result.samples, expected) < 1e-5


def test_an_episode_resumes_in_the_middle(small_policy, observations):
    whole = run(small_policy, lagged(), observations)
    controller = Controller(small_policy, lagged())
    controller.reset(UID, steps=2, memory=whole[1].memory)
    for observation, result in zip(observations[2:], whole[2:], strict=True):
        again = controller.step(observation)
        np.testing.assert_array_equal(again.samples, result.samples)
        np.testing.assert_array_equal(again.kept, result.kept)


def test_a_live_run_has_no_recording_to_be_shown(small_policy, observations):
    with pytest.raises(ConfigError, match="a live run has none"):
        run(small_policy, lagged(feedback="recorded"), observations[:1])


def test_recorded_feedback_decides_from_stored_scores(small_trace):
    config = lagged(feedback="recorded", refresh_every=3)
    forward = Replay(small_trace).run(config).episodes[config.name]
    decided = replay_decisions(small_trace, config)
    for episode in forward:
        decisions = [step.result.decision for step in episode.steps]
        assert decision_digest(decisions) == decision_digest(decided[episode.id])
    four = [step.result.decision.pruned for step in forward[0].steps]
    assert four == [False, True, True, False]
    with pytest.raises(TraceError, match='"own"'):
        replay_decisions(small_trace, lagged())
