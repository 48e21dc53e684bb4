"""Pruning behind a decoder block: decided in the middle of pass 0, the first blocks over all rows in every pass."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from recorders.sim import Environment
from replay import replay_decisions
from tests.small import make_config, make_draws, make_policy, record_trace
from tests.tracekit.engine.support import UID, first_observations, full_masks, literal_step, relative, run
from tracekit.capture import CaptureSpec
from tracekit.config import Configuration
from tracekit.engine import Controller, StepOptions, decision_shape
from tracekit.engine import forward as forward_module
from tracekit.errors import ConfigError
from tracekit.pruning import DecisionKey, decision_digest


@pytest.fixture(scope="module")
def policy():
    return make_policy(layers=4)


@pytest.fixture(scope="module")
def observations():
    return first_observations(4)


def make(kind="fastv", reuse="none", *, drop="rows", **pruner):
    table = make_config(kind, reuse, "pinned", **{"layer": 1, **pruner}).to_json()
    return Configuration.from_table({**table, "execution": {**table["execution"], "drop": drop}}, "make")


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("reuse", ["none", "encoders", "prefix_kv"])
def test_dropping_behind_a_block_is_masking_keys_from_there_on(policy, observations, reuse, layer):
    (result,) = run(policy, make(reuse=reuse, layer=layer), observations[:1])
    draws = make_draws(policy, observations[0])
    masks = full_masks(result)
    assert not masks[0].all()
    expected = literal_step(policy, observations[0], draws, kept=masks, pinned=True, behind=layer)
    assert relative(result.samples, expected) < 1e-5
    for other in (layer - 1, layer + 1):  # the comparison can tell the block
        elsewhere = literal_step(policy, observations[0], draws, kept=masks, pinned=True, behind=other)
        assert relative(result.samples, elsewhere) > 1e-5
    assert result.whole_share == (layer + 1) / 4
    assert result.pruned_from == 0


@pytest.mark.parametrize("query", ["last_row", "action", "text"])
@pytest.mark.parametrize("reuse", ["none", "prefix_kv"])
def test_the_decision_is_that_of_an_unpruned_pass(policy, observations, query, reuse):
    """The blocks before the cut have seen everything, so the recorded step decides alike."""
    config = make(reuse=reuse, query=query)
    (result,) = run(policy, config, observations[:1])
    whole = make_config("none", reuse, "pinned")
    (full,) = run(policy, whole, observations[:1], options=StepOptions(capture=CaptureSpec.baselines()))
    shape = decision_shape(full.layout)
    decided, _ = config.method.decide(full.observables, None, config.pruner, DecisionKey(0, UID, 1), shape)
    assert decision_digest([result.decision]) == decision_digest([decided])


def test_the_first_blocks_see_all_rows_in_every_pass_and_the_others_what_stays(policy, observations, monkeypatch):
    fed = []
    forward = policy.forward
    monkeypatch.setattr(
        policy,
        "forward",
        lambda rows, positions, cache=None, *, blocks=None, visible=None: (
            fed.append((blocks.start, len(rows))),
            forward(rows, positions, cache, blocks=blocks),
        )[1],
        raising=False,
    )
    (result,) = run(policy, make(), observations[:1])
    stays = result.layout.length - int((~result.kept[0]).sum())
    assert fed == [(0, result.layout.length), (2, stays)] * policy.passes


def test_a_cache_is_shorter_behind_the_cut(policy, observations, monkeypatch):
    caches = []
    new_cache = policy.new_cache
    monkeypatch.setattr(policy, "new_cache", lambda rows: caches.append(new_cache(rows)) or caches[-1], raising=False)
    (result,) = run(policy, make(reuse="prefix_kv"), observations[:1])
    assert len(caches) == 1
    gone = int((~result.kept[0]).sum())
    prefix = result.layout.prefix_length
    assert [layer.length for layer in caches[0].layers] == [prefix, prefix, prefix - gone, prefix - gone]


@pytest.mark.parametrize("reuse", ["none", "prefix_kv"])
def test_masking_behind_a_block_equals_dropping_to_rounding(policy, observations, reuse):
    (rows,) = run(policy, make(reuse=reuse), observations[:1])
    (masked,) = run(policy, make(reuse=reuse, drop="mask"), observations[:1])
    np.testing.assert_array_equal(rows.kept, masked.kept)
    assert relative(rows.samples, masked.samples) < 1e-5


@pytest.mark.parametrize("reuse", ["none", "prefix_kv"])
def test_recording_changes_nothing_and_shows_the_whole_step(policy, observations, reuse):
    """Rows of all layers and later passes, zero where a token was gone."""
    config = make(reuse=reuse)
    options = StepOptions(capture=CaptureSpec.baselines(), encoded="digest")
    (watched,) = run(policy, config, observations[:1], options=options)
    (alone,) = run(policy, config, observations[:1])
    np.testing.assert_array_equal(watched.samples, alone.samples)
    stays = watched.kept[0]
    seen = watched.observables
    assert seen.attention.shape[0] == seen.last_row.shape[0] == 4
    assert seen.last_row[:2, ~stays].all()
    assert not seen.last_row[2:, ~stays].any()
    assert watched.action_rows.shape == (policy.passes - 1, 4, len(stays))
    assert watched.action_rows[:, :2, ~stays].all()
    assert not watched.action_rows[:, 2:, ~stays].any()
    assert watched.action_rows[:, 2:, stays].all()


@pytest.mark.parametrize("reuse", ["none", "prefix_kv"])
def test_a_pruner_that_remembers_is_shown_every_step_to_its_end(policy, observations, reuse):
    """VLA-Pruner: nothing is pruned until its window is full; then by the attention of the steps before."""
    config = make("vla_pruner", reuse, layer=1, action_layer=2, window=2)
    options = StepOptions(capture=CaptureSpec.baselines(), encoded="rows")
    results = run(policy, config, observations, options=options)
    assert [result.decision.pruned for result in results] == [False, False, True, True]
    shape, state = decision_shape(results[0].layout), None
    state = config.method.initial_state(config.pruner, shape)
    for step, result in enumerate(results, start=1):
        seen = replace(result.observables, attention_action=result.action_rows, kept=None)
        decided, state = config.method.decide(seen, state, config.pruner, DecisionKey(0, UID, step), shape)
        np.testing.assert_array_equal(decided.keep_2d, result.decision.keep_2d)
        np.testing.assert_array_equal(decided.keep_3d_tokens, result.decision.keep_3d_tokens)
    unwatched = run(policy, config, observations)
    for one, other in zip(results, unwatched, strict=True):
        np.testing.assert_array_equal(one.samples, other.samples)


def test_decisions_from_a_recording_are_those_of_the_forward_replay(tmp_path, policy, monkeypatch):
    trace = record_trace(tmp_path / "t", policy, (("close_box", 7, 2),), capture=CaptureSpec.baselines())
    config = make()
    decided = replay_decisions(trace, config)["close_box-7"]
    environment = Environment("close_box")
    assert len(decided) == 2
    controller = Controller(policy, config)
    from recorders.sim import episode_uid

    controller.reset(episode_uid("close_box", 7))
    result = controller.step(environment.reset(7))
    assert decision_digest([result.decision]) == decision_digest(decided[:1])


def test_rows_leave_in_one_module_only(policy, observations, monkeypatch):
    """Switching the compaction off there leaves all rows in: nothing else drops any."""
    monkeypatch.setattr(forward_module.PassForward, "_compact", lambda self, step, *given: given[:2])
    (result,) = run(policy, make(), observations[:1])
    (full,) = run(policy, make_config("none", "none", "pinned"), observations[:1])
    np.testing.assert_array_equal(result.samples, full.samples)
    assert not result.kept.all()


def test_a_block_that_is_not_there_is_refused(policy, observations):
    with pytest.raises(ConfigError, match=r"behind block 3 .*has 4; set pruner.layer to at most 2"):
        run(policy, make(layer=3), observations[:1])
    with pytest.raises(ConfigError, match="keeps a mask over several steps"):
        Configuration.from_table({**make().to_json(), "reuse": {"kind": "mask", "fps": "pinned"}}, "x")


def test_a_policy_that_runs_all_blocks_at_once_is_refused(policy, observations, monkeypatch):
    monkeypatch.setattr(policy, "forward", lambda rows, positions, cache=None: torch.empty(0), raising=False)
    with pytest.raises(ConfigError, match="pruner 'fastv' needs a policy whose forward takes blocks="):
        run(policy, make(), observations[:1])
