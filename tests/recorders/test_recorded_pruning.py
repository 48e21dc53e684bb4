"""The release's module tree pruned and recorded at once, replayed through its own modules and through the toolkit's."""

import numpy as np
import pytest
import torch

from recorders import attach
from replay import Replay, replay_decisions
from tests.release_double.adapter import DoublePolicy
from tests.release_double.double import double_of
from tests.release_double.runs import fingerprint, make_inputs, observation_of, record
from tests.tracekit.model.release_files import IDS, release_policy
from tracekit.config import Configuration
from tracekit.errors import ConfigError, PolicyError
from tracekit.policy import Policy, Precision, register_policy
from tracekit.pruning import decision_digest
from tracekit.store import Trace

SEEDS = (0, 1, 2, 3)


def make(kind="tri_stage", *, observe=None, reuse=None, **pruner):
    pruner = {"background_rate": 0.5, **pruner} if kind == "tri_stage" else pruner
    table = {"name": "live", "pruner": {"kind": kind, **pruner}, "execution": {"threads": 1}}
    table |= {} if reuse is None else {"reuse": reuse}
    table |= {} if observe is None else {"observe": observe}
    return Configuration.from_table(table, "make")


LAGGED = {"mode": "lagged", "refresh_every": 3}
CONFIGS = {
    "current": make(),
    "lagged": make(observe=LAGGED),
    "random points": make(unprojected_points="random"),
    "naive": make("naive", rate=0.7),
    "a mask that stays": make(reuse={"kind": "mask"}, observe={"refresh_every": 2}),
}


@pytest.fixture(scope="module")
def policy():
    return release_policy().freeze(Precision())


@pytest.fixture
def mla(policy):
    return double_of(policy, {"close box": IDS})


@pytest.fixture
def adapted(mla, policy):
    theirs = DoublePolicy(mla, policy.identity, policy.action_spec)
    assert isinstance(theirs, Policy)
    register_policy("the double", lambda precision: theirs)
    register_policy("the toolkit's", lambda precision: policy)
    return theirs


def recorded(mla, policy, path, config, seeds=SEEDS):
    torch.manual_seed(3)
    record(mla, policy, path, seeds=seeds, identity=policy.identity, prune=config)
    return path


@pytest.mark.parametrize("name", CONFIGS)
def test_a_pruned_foreign_run_replays_to_the_bit_through_its_own_modules(name, mla, policy, adapted, tmp_path):
    before = fingerprint(mla)
    path = recorded(mla, policy, tmp_path / "t", CONFIGS[name])
    assert fingerprint(mla) == before
    assert Trace.open(path).attributes["kind"] == "pruned_live"
    result = Replay(path, policy="the double").run()
    row = result.to_json()["configurations"][0]
    assert row["matches_recording"] == {"mask_bits": 1.0, "actions_bitwise": True}
    assert row["encode_matches"] is True
    steps = result.episodes["live"][0].steps
    assert not all(step.result.kept.all() for step in steps)
    assert [step.result.pruned_from for step in steps if step.result.decision.pruned]
    decided = replay_decisions(path, CONFIGS[name])["only"]
    assert decision_digest(decided) == row["decisions_digest"]


@pytest.mark.parametrize("name", ["current", "lagged", "naive"])
def test_it_replays_through_the_toolkits_model_to_rounding(name, mla, policy, adapted, tmp_path):
    """Another implementation of the same network: masks may only differ where a margin is within rounding."""
    path = recorded(mla, policy, tmp_path / "t", CONFIGS[name])
    result = Replay(path, policy="the toolkit's").run()
    row = result.to_json()["configurations"][0]
    assert row["matches_recording"]["mask_bits"] == 1.0
    for step in result.episodes["live"][0].steps:
        error = np.abs(step.result.unclipped - step.recorded.unclipped).max()
        assert error <= 1e-4 * np.abs(step.recorded.unclipped).max()


def test_the_replay_is_computed(mla, policy, adapted, tmp_path):
    """Another weight in the modules that it goes through, and neither masks nor actions are those of the recording."""
    path = recorded(mla, policy, tmp_path / "t", CONFIGS["current"])
    mla.vlm.llm_backbone.llm.model.layers[-1].self_attn.k_proj.weight.mul_(3.0)
    row = Replay(path, policy="the double").run().to_json()["configurations"][0]
    assert row["matches_recording"]["mask_bits"] < 1
    assert row["matches_recording"]["actions_bitwise"] is False


def test_recording_does_not_change_a_pruned_run(mla, policy, tmp_path):
    from recorders import prune_live

    path = recorded(mla, policy, tmp_path / "t", CONFIGS["lagged"])
    episode = Trace.open(path).episode("only")
    torch.manual_seed(3)
    with prune_live(mla, CONFIGS["lagged"]) as pruning:
        pruning.reset(5)
        for index, seed in enumerate(SEEDS):
            mla.predict_action_diff(**make_inputs(seed))
            np.testing.assert_array_equal(pruning.last.kept, episode.read("decision/kept", index))
            np.testing.assert_array_equal(mla.unclipped.numpy(), episode.read("action/samples", index)[-1])


def test_a_step_that_fails_leaves_nothing_in_the_recording_or_the_memory(mla, policy, tmp_path):
    config = CONFIGS["current"]
    undisturbed = Trace.open(recorded(mla, policy, tmp_path / "u", config)).episode("only")
    torch.manual_seed(3)
    with (
        attach(mla, tmp_path / "t", action_spec=policy.action_spec, prune=config) as recorder,
        recorder.episode("close_box", "close box", uid=5, episode_id="only") as episode,
    ):
        for seed in SEEDS:
            state = torch.get_rng_state()
            with pytest.raises(ValueError, match="broadcast"):
                mla.predict_action_diff(**{**make_inputs(seed), "cur_robot_state": np.zeros(3)})
            torch.set_rng_state(state)
            inputs = make_inputs(seed)
            with episode.step(observation_of(inputs)) as step:
                step.action = mla.predict_action_diff(**inputs)
    found = Trace.open(tmp_path / "t").episode("only")
    for index in range(len(SEEDS)):
        np.testing.assert_array_equal(found.read("decision/kept", index), undisturbed.read("decision/kept", index))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (make("fastv", reuse={"fps": "pinned"}), "draws its own FPS starts"),
        (make(reuse={"kind": "prefix_kv", "fps": "pinned"}), "runs its encoders and the whole sequence"),
        (make(reuse={"kind": "skip_frame"}), 'reuse.kind = "skip_frame"'),
    ],
)
def test_what_cannot_be_pruned_from_outside_is_refused_before_anything_is_written(config, words, mla, policy, tmp_path):
    before = fingerprint(mla)
    with pytest.raises(ConfigError, match=words):
        recorded(mla, policy, tmp_path / "t", config)
    assert fingerprint(mla) == before
    assert not (tmp_path / "t").exists()


def test_pruning_elsewhere_while_recording_is_still_refused(mla, policy, tmp_path):
    from recorders import prune_live

    with prune_live(mla, CONFIGS["naive"]), pytest.raises(PolicyError, match="recorded or pruned already"):
        recorded(mla, policy, tmp_path / "t", CONFIGS["naive"], seeds=(0,))
