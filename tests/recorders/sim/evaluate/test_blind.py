"""A policy without eyes is shown nothing in any row, and one that has eyes is never called blind."""

import json
from dataclasses import replace

import pytest

from recorders.sim.blind import is_blind
from recorders.sim.environment import SCENE_VERSION
from recorders.sim.evaluate import Case, control_case, evaluate, unpruned
from recorders.sim.evaluate.run import _Job
from recorders.sim.evaluate.sightless import no_control_because
from recorders.sim.train.fresh import fresh_policy
from recorders.sim.train.plan import TrainingPlan
from tests.recorders.sim.papers import papers_for
from tests.small import make_config
from tracekit.config import load_config, preset_names
from tracekit.errors import ConfigError
from tracekit.model import save_policy

TASK, SEED = "close_box", 3

pytestmark = pytest.mark.usefixtures("short_episodes")


@pytest.mark.parametrize("configuration", [unpruned(), make_config("naive", rate=0.5, name="unpruned")])
def test_a_blind_policy_is_shown_nothing_in_any_row(configuration):
    row = Case("unpruned", configuration, "small-blind")
    result = evaluate([row], [TASK], 1, SEED)
    (outcome,) = result.cases[0].outcomes
    assert (outcome.pruned_image, outcome.pruned_point) == (1.0, 1.0)
    assert result.no_blind_row is None
    assert result.to_json()["no_blind_row"] is None


def test_a_blind_policy_plays_the_same_episode_in_its_own_row_and_in_another():
    own = control_case("blind", "small", "small-blind").configuration
    other = Case("unpruned", unpruned(), "small-blind").without_eyes().configuration
    assert other.digest == own.digest


def test_every_preset_can_be_run_without_eyes():
    for name in preset_names():
        without = Case(name, load_config(name), "small-blind").without_eyes().configuration
        assert (without.name, without.kind, without.reuse.kind) == (name, "drop", load_config(name).reuse.kind)
    cut = make_config("tri_stage", "prefix_kv")
    cut = replace(cut, reuse=replace(cut.reuse, kv="drop"))
    assert Case("cut", cut, "small-blind").without_eyes().configuration.reuse.kv == "reprefill"


def test_a_policy_with_eyes_is_not_called_blind(tmp_path):
    out = tmp_path / "episodes.jsonl"
    with pytest.raises(ConfigError, match="--blind small: this policy has eyes"):
        evaluate([control_case("blind", "small", "small")], [TASK], 1, SEED, out=out)
    assert not out.exists()


def test_a_table_without_a_blind_row_says_so(case):
    result = evaluate([case()], [TASK], 1, SEED)
    assert "train one with `tracekit train --blind`" in result.to_json()["no_blind_row"]


def test_what_training_makes_is_told_apart():
    for blind in (False, True):
        assert is_blind(fresh_policy(TrainingPlan(blind=blind)).identity) is blind


def test_a_blind_policy_is_not_recorded(tmp_path):
    with pytest.raises(ConfigError, match="no blind policy"):
        evaluate([Case("unpruned", unpruned(), "small-blind")], [TASK], 1, SEED, record=tmp_path / "trace")
    assert not list(tmp_path.iterdir())


def test_controls_are_computed_as_the_row_they_are_compared_with():
    like = make_config("naive", "none", rate=0.5)
    for control in ("no_image", "wrong_instruction", "blind"):
        row = control_case(control, "small", "small-blind", like).configuration
        assert (row.reuse, row.execution) == (like.reuse, like.execution)
        assert control_case(control, "small", "small-blind").configuration.reuse == unpruned().reuse
    assert control_case("wrong_instruction", "small", None, like).configuration.kind == "none"


def test_keys_of_episodes_stay_what_they_were(small_policy):
    """Files of finished episodes outlive versions: only what changes an episode may change its key."""
    row = control_case("no_image", "small", None)
    job = _Job(row, TASK, SEED, small_policy.identity)
    assert job.key == _Job(replace(row, name="another", must_be_blind=True), TASK, SEED, small_policy.identity).key
    assert job.key != _Job(row, TASK, SEED + 1, small_policy.identity).key
    assert job.key != _Job(replace(row, wrong_instruction=True), TASK, SEED, small_policy.identity).key


@pytest.mark.parametrize("place", ["run", "run/policy"])
def test_a_blind_policy_is_a_control_of_the_tasks_it_was_trained_on(tmp_path, place):
    policy = tmp_path / "run" / "policy"
    fresh = fresh_policy(TrainingPlan(blind=True))
    save_policy(fresh, policy)
    papers = papers_for(fresh.identity.weights_digest, tasks=["close_box_narrow"])
    (tmp_path / place / "training.json").write_text(json.dumps(papers))
    out = tmp_path / "episodes.jsonl"
    with pytest.raises(ConfigError, match="was not trained on close_box, so it is no control there"):
        evaluate([control_case("blind", "small", str(policy))], [TASK], 1, SEED, out=out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (None, "no training.json in it or beside it is of its weights"),
        ({"weights_digest": "other"}, "no training.json in it or beside it is of its weights"),
        ({"scene_version": SCENE_VERSION - 1}, f"trained in scenes of version {SCENE_VERSION - 1}"),
        ({"step": 5}, "its training is at step 5 of 6"),
        ({}, None),
    ],
)
def test_a_blind_policy_that_had_no_chance_is_no_control(tmp_path, changes, reason):
    fresh = fresh_policy(TrainingPlan(blind=True))
    save_policy(fresh, tmp_path / "policy")
    if changes is not None:
        papers = papers_for(fresh.identity.weights_digest, tasks=[TASK]) | changes
        (tmp_path / "policy" / "training.json").write_text(json.dumps(papers))
    found = no_control_because(tmp_path / "policy", fresh.identity, [TASK])
    assert (found is None) if reason is None else (reason in found)
