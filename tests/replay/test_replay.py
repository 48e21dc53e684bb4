"""A replay computes again what was recorded: bit by bit where nothing was changed, and visibly otherwise."""

import json

import numpy as np
import pytest

import replay.source
from replay import Replay, replay_decisions
from replay.accuracy import replay_episode
from replay.source import TraceSource
from tests.small import make_config, make_policy, record_trace
from tracekit import keys
from tracekit.capture import CaptureSpec
from tracekit.config import Configuration
from tracekit.engine import Controller
from tracekit.errors import ConfigError, PolicyError, TraceError, TracekitError
from tracekit.philox import fps_starts
from tracekit.pruning import decision_digest
from tracekit.store import Trace, TraceWriter, copy_trace
from tracekit.store.copying import copy_episode

EPISODES = ("close_box-7", "close_laptop-3")
CONFIGS = (
    make_config(),
    make_config("naive"),
    make_config("tri_stage"),
    make_config("none", "prefix_kv", name="kv"),
    make_config("tri_stage", "prefix_kv", name="tri_stage-kv"),
)


@pytest.fixture(scope="module")
def result(small_trace):
    return Replay(small_trace).run(*CONFIGS)


@pytest.fixture(scope="module")
def rows(result):
    """Configuration name -> its object in `replay --json`."""
    return {row["name"]: row for row in result.to_json()["configurations"]}


def replay_one(trace, *configs, **options):
    """The objects of `replay --json` for some configurations."""
    found = Replay(trace, **options).run(*(configs or (make_config(),))).to_json()["configurations"]
    return found[0] if len(found) == 1 else found


def changed(trace, target, drop=lambda _key: False, edit=None):
    copy_trace(trace, target, drop=drop, edit=edit)
    return target


@pytest.mark.parametrize("which", ["small_trace", "trace"])
def test_an_unpruned_replay_is_the_recording_bit_by_bit(which, request):
    path = request.getfixturevalue(which)
    result = Replay(path).run(make_config())
    stored = Trace.open(path)
    for episode in result.episodes["none"]:
        samples = stored.episode(episode.id).read(keys.ACTION_SAMPLES)
        actions = stored.episode(episode.id).read(keys.ACTION_POLICY)
        assert len(episode.steps) == len(samples)
        for step, sample, action in zip(episode.steps, samples, actions, strict=True):
            assert step.result.samples.tobytes() == sample.tobytes()
            assert step.result.action.tobytes() == action.tobytes()
    row = result.to_json()["configurations"][0]
    assert row["matches_recording"] is True
    assert row["encode_matches"] is True
    assert row["deviation"] == row["deviation_unpruned"]
    assert {key: value for key, value in row["deviation"].items() if key != "clipped_share"} == {
        "translation_mm": 0.0,
        "rotation_deg": 0.0,
        "gripper_flips": 0,
        "unclipped_relative": 0.0,
    }


def test_the_match_is_computed_and_not_looked_up(small_trace, rows, tmp_path):
    bare = changed(small_trace, tmp_path / "bare", lambda key: key.startswith("action/") and key != keys.ACTION_NOISE)
    assert [key for key in Trace.open(bare).episode(EPISODES[0]) if key.startswith("action/")] == [keys.ACTION_NOISE]
    row, pruned = replay_one(bare, make_config(), make_config("tri_stage"))
    assert row["actions_digest"] == rows["none"]["actions_digest"]
    assert row["decisions_digest"] == rows["none"]["decisions_digest"]
    assert pruned["actions_digest"] == rows["tri_stage"]["actions_digest"]
    assert row["matches_recording"] is None
    assert row["encode_matches"] is True
    assert set(row["deviation"].values()) == set(row["deviation_unpruned"].values()) == {None}


def test_one_pixel_is_noticed(small_trace, rows, tmp_path):
    def touch(episode, key, array):
        if episode == EPISODES[0] and key == keys.image("front"):
            array[2, 100, 100, 0] ^= 1
        return array

    row = replay_one(changed(small_trace, tmp_path / "touched", edit=touch))
    assert row["actions_digest"] != rows["none"]["actions_digest"]
    assert row["encode_matches"] is False
    assert row["matches_recording"] is False
    assert row["deviation"]["unclipped_relative"] > 0


def test_another_state_is_noticed_too(small_trace, rows, tmp_path):
    def touch(_episode, key, array):
        return array + 1e-3 if key == keys.STATE else array

    row = replay_one(changed(small_trace, tmp_path / "touched", edit=touch))
    assert row["encode_matches"] is False
    assert row["actions_digest"] != rows["none"]["actions_digest"]


def test_the_same_replay_twice_has_the_same_digests(small_trace, rows):
    for again in replay_one(small_trace, *CONFIGS[:2:-1]):
        for key in ("digest", "decisions_digest", "actions_digest", "deviation", "kept_2d", "kept_3d"):
            assert again[key] == rows[again["name"]][key], (again["name"], key)
    assert len({row["actions_digest"] for row in rows.values()}) == len(rows)


def test_configurations_replayed_alone_are_those_replayed_together(small_trace, rows):
    alone = replay_one(small_trace, make_config("tri_stage", "prefix_kv"))
    assert alone["actions_digest"] == rows["tri_stage-kv"]["actions_digest"]
    assert alone["decisions_digest"] == rows["tri_stage-kv"]["decisions_digest"]
    assert alone["deviation_unpruned"] == rows["kv"]["deviation"]


def test_a_replay_is_the_live_run(small_trace, small_policy, result):
    """A live run on the recorded observations draws for itself what the replay reads."""
    episode = result.episodes["tri_stage"][0]
    live = Controller(small_policy, make_config("tri_stage"))
    live.reset(Trace.open(small_trace).episodes[0].uid)
    for step in episode.steps:
        taken = live.step(step.recorded.observation)
        assert taken.samples.tobytes() == step.result.samples.tobytes()
        np.testing.assert_array_equal(taken.kept, step.result.kept)


def test_what_a_match_can_be_claimed_for(rows):
    assert rows["naive"]["matches_recording"] is False
    assert rows["tri_stage"]["matches_recording"] is False
    assert rows["kv"]["matches_recording"] is None  # another reuse than the recording's
    assert rows["kv"]["deviation"]["unclipped_relative"] > 0  # pinning alone moves the action
    assert all(row["encode_matches"] is True for row in rows.values())


def test_a_recording_with_other_threads_claims_no_match(small_trace, rows, tmp_path):
    trace = Trace.open(small_trace)
    execution = {**trace.attributes["execution"], "threads": 64}
    with TraceWriter.create(tmp_path / "other", {**trace.attributes, "execution": execution}) as writer:
        copy_episode(trace.episode(EPISODES[1]), writer, None, None)
    row = replay_one(tmp_path / "other")
    assert row["matches_recording"] is None
    assert row["deviation"]["unclipped_relative"] == 0


def test_pinned_starts_are_those_of_pass_0(small_trace):
    """Every pass then encodes what pass 0 did; that is no mismatch of the observation."""
    row = replay_one(small_trace, make_config("none", "none", "pinned", name="pinned"))
    assert row["encode_matches"] is True
    assert row["matches_recording"] is None


@pytest.mark.parametrize(
    "config",
    [
        make_config("none"),
        make_config("naive", rate=0.3, seed=5),
        make_config("naive", redraw="episode", paired=True),
        make_config("tri_stage"),
        make_config("tri_stage", "encoders", background_rate=0.5, seed=3),
        make_config("tri_stage", stages=["s1"], modalities="2d"),
        make_config("tri_stage", unprojected_points="random", budget="soft", rate=0.5),
        make_config("tri_stage", "encoders", budget="hard_topk", rate=0.6),
        make_config("tri_stage", reduction={"groups": ["state"], "components": "layer", "layers": "all"}),
        make_config("tri_stage", reduction={"feature": "postnorm", "correspondence": "nearest"}),
        make_config("tri_stage", "encoders", reduction={"correspondence": "index", "components": "query"}),
        make_config("tri_stage", "encoders", budget="hard_topk", rate=0.5, reduction={"correspondence": "nearest"}),
    ],
    ids=lambda config: f"{config.kind}-{config.digest[:6]}",
)
def test_decisions_from_stored_scores_are_those_of_the_forward_replay(small_trace, small_policy, config, monkeypatch):
    forward = {
        episode.info.id: [step.result.decision for step in replay_episode(small_policy, config, episode, int).steps]
        for episode in TraceSource(small_trace).episodes()
    }
    monkeypatch.setattr(replay.source, "load_policy", None)  # no policy is needed
    decided = replay_decisions(small_trace, config)
    assert list(decided) == list(EPISODES)
    for name, decisions in decided.items():
        assert decision_digest(decisions) == decision_digest(forward[name])
        for ours, theirs in zip(decisions, forward[name], strict=True):
            assert ours.margins.keys() == theirs.margins.keys()
            for margin, values in ours.margins.items():
                np.testing.assert_array_equal(values, theirs.margins[margin])
    if config.kind != "none":
        assert decision_digest(decided[EPISODES[0]]) != decision_digest(decided[EPISODES[1]])


def test_over_a_kept_prefix_decisions_differ_by_the_rounding_of_the_observed_pass(small_trace, small_policy):
    config = make_config("tri_stage", "prefix_kv", background_rate=0.5, seed=3)
    decided = replay_decisions(small_trace, config)
    for episode in TraceSource(small_trace).episodes():
        for ours, step in zip(
            decided[episode.info.id], replay_episode(small_policy, config, episode, int).steps, strict=True
        ):
            for margin, values in step.result.decision.margins.items():
                np.testing.assert_allclose(ours.margins[margin], values, rtol=0, atol=1e-6, err_msg=margin)


def test_decisions_need_the_scores_of_their_reduction_or_what_it_reads(small_trace, tmp_path):
    with pytest.raises(TraceError, match="norms of feature 'logits' were not recorded"):
        replay_decisions(small_trace, make_config("tri_stage", reduction={"feature": "logits"}))
    without_scores = changed(small_trace, tmp_path / "without", lambda key: key.startswith("scores/"))
    stored, reduced = (replay_decisions(path, make_config("tri_stage")) for path in (small_trace, without_scores))
    assert [decision_digest(one) for one in stored.values()] == [decision_digest(one) for one in reduced.values()]
    for part, name in (("attention", "attention"), ("norms", "norms of feature 'prenorm'")):
        drop = ("scores/", f"observables/{part}")
        bare = changed(small_trace, tmp_path / part, lambda key, drop=drop: key.startswith(drop))
        with pytest.raises(TraceError, match=name):
            replay_decisions(bare, make_config("tri_stage"))
        replay_decisions(bare, make_config("naive"))


def test_passes_other_than_the_first_are_decided_from_the_recording(small_trace):
    table = make_config(
        "tri_stage", reduction={"passes": "first", "groups": ["action"], "components": "layer"}, tau_2d=0.3, tau_3d=0.5
    ).to_json()
    table["observe"] = {"mode": "lagged", "feedback": "recorded"}
    digests = set()
    for passes in ("first", "mean", "all"):
        table["pruner"]["reduction"]["passes"] = passes
        decided = replay_decisions(small_trace, Configuration.from_table(table, passes))
        digests.add(decision_digest(decided[EPISODES[0]]))
    assert len(digests) == 3


def test_a_forward_replay_computes_what_was_not_stored(small_trace, rows, tmp_path):
    """Scores and observables are the forward's own; only sensors and draws are read."""
    needed = {keys.image("front"), keys.POINTS, keys.STATE, keys.ACTION_NOISE, keys.FPS_STARTS}
    bare = changed(small_trace, tmp_path / "bare", lambda key: key not in needed)
    row = replay_one(bare, make_config("tri_stage"))
    assert row["decisions_digest"] == rows["tri_stage"]["decisions_digest"]
    assert row["actions_digest"] == rows["tri_stage"]["actions_digest"]
    assert row["encode_matches"] is None


def test_renumbering_a_store_changes_no_decision(small_trace, small_policy, tmp_path):
    """Draws are keyed by the episode's uid: its place in the store, and what else is in there, do not matter."""
    reverse = record_trace(tmp_path / "reverse", small_policy, (("close_laptop", 3, 2), ("close_box", 7, 4)))
    alone = record_trace(tmp_path / "alone", small_policy, (("close_box", 7, 4),))
    assert list(replay_decisions(reverse, make_config("none"))) == list(reversed(EPISODES))
    for config in (
        make_config("tri_stage", background_rate=0.5, seed=3, unprojected_points="random"),
        make_config("naive"),
    ):
        digests = {name: decision_digest(one) for name, one in replay_decisions(small_trace, config).items()}
        assert {name: decision_digest(one) for name, one in replay_decisions(reverse, config).items()} == digests
        assert decision_digest(replay_decisions(alone, config)["close_box-7"]) == digests["close_box-7"]


def test_some_episodes_only(small_trace, result):
    found = Replay(small_trace, episodes=EPISODES[1:]).run(make_config("tri_stage"))
    assert [episode.id for episode in found.episodes["tri_stage"]] == ["close_laptop-3"]
    ours, theirs = found.episodes["tri_stage"][0], result.episodes["tri_stage"][1]
    for one, other in zip(ours.steps, theirs.steps, strict=True):
        assert one.result.samples.tobytes() == other.result.samples.tobytes()
    assert found.to_json()["steps"] == 2
    backwards = Replay(small_trace, episodes=EPISODES[::-1]).run(make_config())
    assert [episode.id for episode in backwards.episodes["none"]] == list(EPISODES[::-1])


def test_unknown_episodes_are_named(small_trace):
    with pytest.raises(TraceError, match=r"no episode 'close_box-8'; it has: close_box-7, close_laptop-3"):
        Replay(small_trace, episodes=["close_box-8"])
    with pytest.raises(TraceError, match="'close_box-7' is asked for twice"):
        Replay(small_trace, episodes=["close_box-7", "close_box-7"])


def test_other_weights_are_refused(tmp_path, small_trace):
    other = record_trace(tmp_path / "other", make_policy(seed=2), (("close_box", 7, 1),))
    with pytest.raises(PolicyError, match=r"recorded with policy 'small', weights .* give the recorded policy"):
        Replay(other).run(make_config())
    with pytest.raises(PolicyError, match="'reference' has"):
        Replay(small_trace, policy="reference").run(make_config())
    unknown = record_trace(tmp_path / "unknown", make_policy(name="unheard-of"), (("close_box", 7, 1),))
    with pytest.raises(PolicyError, match="no policy 'unheard-of'"):
        Replay(unknown).run(make_config())


@pytest.mark.parametrize("key", [keys.FPS_STARTS, keys.ACTION_NOISE, keys.POINTS, keys.STATE, keys.image("front")])
def test_a_trace_without_what_a_replay_needs_says_so(small_trace, tmp_path, key):
    bare = changed(small_trace, tmp_path / "bare", lambda name: name == key)
    with pytest.raises(TracekitError) as caught:
        Replay(bare).run(make_config())
    message = str(caught.value)
    assert "\n" not in message
    if key not in (keys.POINTS, keys.image("front")):  # a policy may do without a cloud or a view; this one says which
        assert isinstance(caught.value, TraceError)
        assert repr(key) in message


def test_recorded_starts_are_used_and_not_drawn_again(small_trace, rows, tmp_path):
    def redraw(_episode, key, array):
        if key == keys.FPS_STARTS:
            return np.stack([fps_starts(99, step, 3, (1024, 512)) for step in range(len(array))])
        return array

    row = replay_one(changed(small_trace, tmp_path / "redrawn", edit=redraw))
    assert row["actions_digest"] != rows["none"]["actions_digest"]
    assert row["encode_matches"] is False


def test_only_recordings_of_a_policy_can_be_replayed(tmp_path, small_policy, small_trace):
    trace = Trace.open(small_trace)
    with TraceWriter.create(tmp_path / "observation", {**trace.attributes, "kind": "observation"}):
        pass
    with pytest.raises(TraceError, match="kind 'observation'"):
        Replay(tmp_path / "observation")
    with TraceWriter.create(tmp_path / "empty", trace.attributes):
        pass
    with pytest.raises(TraceError, match="no committed episode"):
        Replay(tmp_path / "empty")
    with pytest.raises(TraceError, match="nowhere"):
        Replay(tmp_path / "nowhere")


def test_configurations_are_told_apart_by_name(small_trace):
    with pytest.raises(ConfigError, match="two configurations are called 'naive'"):
        Replay(small_trace).run(make_config("naive"), make_config("naive", rate=0.2))
    with pytest.raises(ConfigError, match="no configuration"):
        Replay(small_trace).run()


def test_configurations_come_as_objects_or_files(small_trace, tmp_path):
    file = tmp_path / "half.toml"
    file.write_text('name = "half"\n[pruner]\nkind = "naive"\n[execution]\nthreads = 1\n')
    half, own = replay_one(small_trace, file, make_config("naive", name="own"), episodes=EPISODES[1:])
    assert (half["name"], own["name"]) == ("half", "own")
    assert half["digest"] == own["digest"]
    assert half["actions_digest"] == own["actions_digest"]
    with pytest.raises(ConfigError, match="presets: default"):
        Replay(small_trace).run("naive-51")


def test_progress_counts_every_step_once(small_trace):
    seen = []
    replaying = Replay(small_trace, episodes=EPISODES[1:], progress=lambda *report: seen.append(report))
    replaying.run(make_config("naive"), make_config())
    assert [done for _, done, _ in seen] == [1, 2, 3, 4]  # naive and its reference, which is also the other one
    assert {(what, total) for what, _, total in seen} == {("replaying", 4)}


DOCUMENTED = {
    "name": str,
    "digest": str,
    "kept_2d": float,
    "kept_3d": float,
    "rate_2d": float,
    "rate_3d": float,
    "effective_rate": float,
    "decision_ms": type(None),
    "step_ms": type(None),
    "speedup": type(None),
    "deviation": dict,
    "deviation_unpruned": dict,
    "encode_matches": bool,
    "matches_recording": bool,
    "decisions_digest": str,
    "actions_digest": str,
}


def test_the_json_object_has_the_documented_keys(result, rows):
    for key, kind in DOCUMENTED.items():
        assert isinstance(rows["naive"][key], kind), key
    assert list(rows["naive"]["deviation"]) == [
        "translation_mm",
        "rotation_deg",
        "gripper_flips",
        "unclipped_relative",
        "clipped_share",
    ]
    assert len(rows["naive"]["digest"]) == 64
    data = result.to_json()
    assert data["open_loop"] is True
    assert data["episodes"] == list(EPISODES)
    assert data["steps"] == 6
    json.dumps(data, allow_nan=False)


def test_minimal_recordings_replay_as_well(tmp_path, small_policy):
    path = record_trace(tmp_path / "trace", small_policy, (("close_box", 7, 2),), capture=CaptureSpec.minimal())
    unpruned, pruned = replay_one(path, make_config(), make_config("tri_stage"))
    assert unpruned["matches_recording"] is True
    assert pruned["decisions_digest"] == decision_digest(
        replay_decisions(path, make_config("tri_stage"))["close_box-7"]
    )
