"""The release's module tree, pruned while it runs: the engine's masks and actions, and nothing left behind."""

import numpy as np
import pytest
import torch

import recorders
from recorders.attach_passes import PassWatch
from tests.release_double.double import double_of
from tests.release_double.runs import fingerprint, make_inputs, record
from tests.tracekit.model.release_files import IDS, release_policy
from tracekit import keys
from tracekit.config import Configuration, ExecutionConfig, ObserveConfig, ReuseConfig
from tracekit.engine import Controller
from tracekit.errors import ConfigError, PolicyError
from tracekit.policy import Precision
from tracekit.pruning.naive import NaiveConfig
from tracekit.pruning.scores import Reduction
from tracekit.pruning.tri_stage_config import TriStageConfig
from tracekit.records import recorded_draws, recorded_observation
from tracekit.store import Trace

SEEDS = (0, 1, 2)
UID = 5
CONFIGS = {
    "tri_stage": Configuration(name="tri", kind="tri_stage", pruner=TriStageConfig()),
    "random points": Configuration(
        name="random", kind="tri_stage", pruner=TriStageConfig(unprojected_points="random", background_rate=0.5)
    ),
    "no smoothing": Configuration(name="s12", kind="tri_stage", pruner=TriStageConfig(stages=("s1", "s2"))),
    "naive": Configuration(name="naive", kind="naive", pruner=NaiveConfig(rate=0.7)),
    "naive 2d": Configuration(name="naive-2d", kind="naive", pruner=NaiveConfig(rate=0.5, modalities="2d")),
    "lagged": Configuration(
        name="lagged", kind="tri_stage", pruner=TriStageConfig(), observe=ObserveConfig(mode="lagged", refresh_every=4)
    ),
    "held masks": Configuration(name="held", kind="tri_stage", pruner=TriStageConfig(), reuse=ReuseConfig(kind="mask")),
    "logits": Configuration(
        name="logits", kind="tri_stage", pruner=TriStageConfig(reduction=Reduction(feature="logits"))
    ),
    "none": Configuration(),
}


@pytest.fixture(scope="module")
def policy():
    return release_policy().freeze(Precision())


@pytest.fixture
def mla(policy):
    return double_of(policy, {"close box": IDS})


@pytest.fixture(scope="module")
def episode(policy, tmp_path_factory):
    """The unpruned run whose random draws every pruned one repeats."""
    path = tmp_path_factory.mktemp("unpruned") / "trace.zarr"
    torch.manual_seed(3)
    record(double_of(policy, {"close box": IDS}), policy, path, seeds=SEEDS, identity=policy.identity)
    return Trace.open(path).episode("only")


def live(mla, config, episode, uid=UID):
    """(unclipped action, what was pruned) of every step of `episode`, from the generators' recorded states."""
    steps = []
    with recorders.prune_live(mla, config) as pruning:
        pruning.reset(uid)
        for index, seed in enumerate(SEEDS):
            recorders.restore_generators({"torch": episode.read(keys.generator("torch"), index)})
            mla.predict_action_diff(**make_inputs(seed))
            steps.append((mla.unclipped.numpy().copy(), pruning.last))
    return steps


@pytest.mark.parametrize(
    ("name", "use_cache"), [*((name, None) for name in CONFIGS), ("tri_stage", False), ("naive", False)]
)
def test_pruned_live_equals_the_engine_pruned_replay(name, use_cache, mla, policy, episode):
    """Without a cache, present versions of transformers would take the gaps in the positions for packed samples."""
    mla.vlm.use_cache = use_cache
    controller = Controller(policy, CONFIGS[name])
    controller.reset(UID)
    dropped = 0
    for index, (unclipped, pruned) in enumerate(live(mla, CONFIGS[name], episode)):
        result = controller.step(recorded_observation(episode, index, {}), recorded_draws(episode, index))
        assert np.array_equal(pruned.kept, result.kept)
        assert pruned.pruned_from == result.pruned_from
        assert np.abs(unclipped - result.unclipped).max() <= 1e-4 * np.abs(result.unclipped).max()
        dropped += int((~pruned.kept).sum())
    assert (dropped > 0) == (name != "none")


def test_renumbered_positions_would_show(mla, policy, episode, monkeypatch):
    """The parity above is not blind: without the injected positions the actions differ."""
    before_backbone = PassWatch._before_backbone

    def forgetful(self, *args):
        changed = before_backbone(self, *args)
        if changed is not None:
            changed[1].pop("position_ids")
        return changed

    right = live(mla, CONFIGS["naive"], episode)
    monkeypatch.setattr(PassWatch, "_before_backbone", forgetful)
    wrong = live(mla, CONFIGS["naive"], episode)
    assert np.array_equal(right[0][1].kept, wrong[0][1].kept)
    assert np.abs(right[0][0] - wrong[0][0]).max() > 1e-2 * np.abs(right[0][0]).max()


def test_removing_restores_the_model_exactly(mla):
    def run():
        torch.manual_seed(8)
        mla.predict_action_diff(**make_inputs())
        return mla.unclipped.numpy().tobytes()

    before, alone = fingerprint(mla), run()
    pruning = recorders.prune_live(mla, CONFIGS["naive"])
    pruning.reset(1)
    assert fingerprint(mla) != before
    assert run() != alone
    pruning.remove()
    pruning.remove()
    assert fingerprint(mla) == before
    assert run() == alone


def test_a_failed_step_leaves_no_memory(mla, episode):
    config = CONFIGS["tri_stage"]
    undisturbed = live(mla, config, episode)
    with recorders.prune_live(mla, config) as pruning:
        pruning.reset(UID)
        for index, seed in enumerate(SEEDS):
            with pytest.raises(ValueError, match="broadcast"):
                mla.predict_action_diff(**{**make_inputs(seed), "cur_robot_state": np.zeros(3)})
            recorders.restore_generators({"torch": episode.read(keys.generator("torch"), index)})
            mla.predict_action_diff(**make_inputs(seed))
            assert np.array_equal(pruning.last.kept, undisturbed[index][1].kept)


def test_episodes_are_told_apart(mla, episode):
    first = live(mla, CONFIGS["naive"], episode, uid=1)
    second = live(mla, CONFIGS["naive"], episode, uid=2)
    again = live(mla, CONFIGS["naive"], episode, uid=1)
    assert not np.array_equal(first[0][1].kept, second[0][1].kept)
    assert np.array_equal(first[0][1].kept, again[0][1].kept)


def test_a_pruned_run_cannot_be_recorded_as_a_full_one(mla, policy, tmp_path):
    with (
        recorders.prune_live(mla, CONFIGS["naive"]),
        pytest.raises(PolicyError, match="recorded or pruned already"),
    ):
        record(mla, policy, tmp_path / "t", seeds=(0,))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Configuration(reuse=ReuseConfig(kind="prefix_kv", fps="pinned")), "runs its encoders and the whole sequence"),
        (Configuration(reuse=ReuseConfig(fps="pinned")), "draws its own FPS starts"),
        (Configuration(execution=ExecutionConfig(drop="mask")), "live, rows are dropped"),
    ],
)
def test_what_cannot_be_done_from_outside_is_refused(mla, config, message):
    before = fingerprint(mla)
    with pytest.raises(ConfigError, match=message):
        recorders.prune_live(mla, config)
    assert fingerprint(mla) == before


def test_a_policy_without_fusion_is_refused(mla):
    mla.vlm.encode = mla.vlm.get_fused_tokens
    with pytest.raises(PolicyError, match="vlm has no 'elsewhere'"):
        recorders.prune_live(mla, CONFIGS["naive"], sites={"fuse": "vlm.elsewhere"})
    with pytest.raises(PolicyError, match="give the method that returns the visual rows as fuse="):
        recorders.prune_live(mla, CONFIGS["naive"], sites={"fuse": None})


def test_a_policy_that_takes_away_the_correspondence_is_refused(mla):
    original = mla.vlm.get_fused_tokens
    mla.vlm.get_fused_tokens = lambda *given: original(*given)[0]
    mla.vlm.forward = lambda x=None, t=None, images=None, point_cloud=None, **_: mla.vlm.get_fused_tokens(
        images, point_cloud
    )
    with (
        recorders.prune_live(mla, CONFIGS["tri_stage"]),
        pytest.raises(PolicyError, match="returns no correspondence"),
    ):
        mla.predict_action_diff(**make_inputs())
