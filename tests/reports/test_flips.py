"""Why mask bits differ: rounding of the inputs never counts as logic, and a planted error always does."""

from dataclasses import fields, replace

import numpy as np
import pytest

import tracekit.pruning.tri_stage as tri_stage_module
from replay import Replay
from reports import diff_replays
from reports.flips import FLIP_CLASSES, episode_flips
from tests.small import make_config
from tracekit.config import Configuration
from tracekit.errors import TracekitError
from tracekit.pruning import DecisionKey, Scores, Shape
from tracekit.store import Trace
from tracekit.testing import random_scores

SHAPE = Shape(256, 256)
STEPS = 9


class Saved:
    """An episode of a saved replay, as `episode_flips` reads it."""

    def __init__(self, rows):
        self._rows = rows

    def keys(self):
        return self._rows[0].keys()

    def read(self, name):
        return np.stack([row[name] for row in self._rows])


def run(scores, config, uid=5):
    """Decisions on whole scores (steps, N), laid out as they are saved."""
    state, rows = config.method.initial_state(config.pruner, SHAPE), []
    for step in range(len(scores)):
        one = scores.step(step)
        key = DecisionKey(0, uid, step + 1)
        decision, state = config.method.decide(one, state, config.pruner, key, SHAPE)
        row = {
            "decision/mask_2d": decision.keep_2d,
            "decision/mask_3d": decision.keep_3d_patches,
            "decision/s2": decision.s2,
            "decision/cluster": np.full(256, -1, np.int8) if decision.cluster is None else decision.cluster,
            "seen/observed": np.ones(256, bool),
        }
        row |= {f"margin/{name}": values for name, values in decision.margins.items()}
        row |= {f"indicator/{name}": values for name, values in decision.indicators.items()}
        row |= {f"seen/{item.name}": getattr(one, item.name) for item in fields(Scores)}
        rows.append(row)
    return Saved(rows)


def moved(scores, relative, seed=0):
    """The scores, every one of them changed by up to `relative`."""
    random = np.random.default_rng(seed)
    values = {}
    for item in fields(Scores):
        own = getattr(scores, item.name)
        if own.dtype == np.float32:
            own = (own * (1 + relative * random.uniform(-0.9, 0.9, own.shape))).astype(np.float32)
        values[item.name] = own
    return Scores(**values)


def classes(config, a, b, relative=1e-5):
    return {flip.kind for flip in episode_flips("e", config, a, b, relative)}


OPTIONS = (
    {},
    {"k": 3, "beta": 0.5},
    {"window": "window_mean", "k": 4},
    {"clustering": "separate"},
    {"cluster_input": "smoothed", "k": 3},
    {"cluster_order": "inverse", "ortho": "clamp"},
    {"stages": ["s1", "s2"]},
    {"baseline": "all_patches"},
    {"baseline": "per_set"},
    {"object_rule": "quantiles"},
    {"draw": "stratified"},
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_rounding_of_the_inputs_is_never_logic_or_real(options):
    """Many thresholds, each set on a value that occurs: the scores' rounding then turns some test or other."""
    scores = random_scores(SHAPE, STEPS, seed=3)
    plain = make_config("tri_stage", **options)
    occurring = run(scores, plain).read("indicator/m_3d_s1")
    found = set()
    for seed in range(12):
        tau = float(occurring[seed % STEPS, 17 * seed + 3])
        config = make_config("tri_stage", background_rate=0.3, **options, tau_2d=tau, tau_3d=tau)
        found |= classes(config, run(scores, config), run(moved(scores, 1e-5, seed), config))
    assert found <= {"tie", "upstream", "consequence"}
    assert found


def test_larger_differences_of_the_inputs_are_real():
    scores = random_scores(SHAPE, STEPS, seed=3)
    config = make_config("tri_stage", background_rate=0.3)
    assert "real" in classes(config, run(scores, config), run(moved(scores, 1e-2), config))
    assert classes(config, run(scores, config), run(scores, config)) == set()


def test_bfloat16_tolerates_more():
    scores = random_scores(SHAPE, STEPS, seed=3)
    config = make_config("tri_stage", background_rate=0.3)
    ours, theirs = run(scores, config), run(moved(scores, 1e-3), config)
    narrow = [flip for flip in episode_flips("e", config, ours, theirs, 1e-5) if flip.kind == "real"]
    wide = [flip for flip in episode_flips("e", config, ours, theirs, 5e-2) if flip.kind == "real"]
    assert narrow
    assert not wide


def test_a_planted_error_is_logic_and_what_follows_is_a_consequence():
    scores = random_scores(SHAPE, STEPS, seed=3)
    config = make_config("tri_stage", background_rate=0.3, k=2)
    wrong = replace(config, pruner=replace(config.pruner, beta=config.pruner.beta + 0.01))
    flips = episode_flips("e", config, run(scores, config), run(scores, wrong), 1e-5)
    assert flips[0].kind == "logic"
    assert flips[0].step >= 1  # step 1 smooths nothing
    first = flips[0].step
    assert {flip.kind for flip in flips if flip.step > first} == {"consequence"}
    assert {flip.kind for flip in flips if flip.step == first} == {"logic"}
    assert flips[0].margin in {"mu_2d", "mu_3d", "tau_2d", "tau_3d", "object_2d", "object_3d"}


def test_a_planted_error_on_a_threshold_is_logic_as_well():
    """Where the inputs are equal, bit for bit, no rounding explains a tie that came out differently."""
    scores = random_scores(SHAPE, STEPS, seed=3)
    plain = make_config("tri_stage", background_rate=0.3, k=2)
    occurring = run(scores, plain).read("indicator/m_3d_s1")[1]
    firsts = set()
    for tau in occurring[:40].tolist():
        config = replace(plain, pruner=replace(plain.pruner, tau_2d=tau, tau_3d=tau))
        wrong = replace(config, pruner=replace(config.pruner, beta=config.pruner.beta + 0.01))
        flips = episode_flips("e", config, run(scores, config), run(scores, wrong), 1e-5)
        firsts |= {(flip.kind, abs(flip.value) <= flip.bound) for flip in flips if flip.step == flips[0].step}
    assert ("logic", True) in firsts
    assert {kind for kind, _ in firsts} == {"logic"}


def test_inputs_that_are_no_numbers_are_close_to_nothing():
    scores = random_scores(SHAPE, STEPS, seed=3)
    config = make_config("tri_stage", background_rate=0.3)
    ours, theirs = run(scores, config), run(moved(scores, 1e-3), config)
    before = classes(config, ours, theirs, 5e-2)
    assert "upstream" in before
    assert "real" not in before
    for row in theirs._rows:
        row["seen/norm_2d"] = np.full_like(row["seen/norm_2d"], np.nan)
    after = classes(config, ours, theirs, 5e-2)
    assert "upstream" not in after
    assert "real" in after


def test_other_draws_are_logic_of_a_draw():
    scores = random_scores(SHAPE, 3, seed=3)
    config = make_config("tri_stage", stages=["s1", "s2"])
    ours = run(scores, config)
    flips = episode_flips("e", config, ours, run(scores, config, uid=6), 1e-5)
    assert {(flip.kind, flip.margin) for flip in flips} == {("logic", "draw")}


def test_the_bound_is_computed_from_run_a_alone():
    scores = random_scores(SHAPE, STEPS, seed=3)
    config = make_config("tri_stage", background_rate=0.3)
    near, far = run(moved(scores, 9e-3), config), run(moved(scores, 9e-3), config)
    for row in far._rows:
        for name in row:
            if name.startswith("margin/"):
                row[name] = np.where(np.isnan(row[name]), row[name], 1e3 * row[name])  # signs and tests stay
    ours = run(scores, config)
    one, other = (episode_flips("e", config, ours, theirs, 1e-2) for theirs in (near, far))
    assert [(f.step, f.patch, f.kind, f.bound) for f in one] == [(f.step, f.patch, f.kind, f.bound) for f in other]
    assert one


def test_without_margins_equal_inputs_are_logic_and_others_are_real():
    config = make_config("naive")
    masks = [np.arange(4) < 2, np.arange(4) < 3]
    saved = [Saved([{"decision/mask_2d": mask}]) for mask in masks]
    assert [flip.kind for flip in episode_flips("e", config, *saved, 1e-5)] == ["logic"]
    for one, byte in zip(saved, (1, 2), strict=True):
        one._rows[0]["digest/seen"] = np.full(32, byte, np.uint8)
    (flip,) = episode_flips("e", config, *saved, 1e-5)
    assert (flip.kind, flip.patch, flip.margin) == ("real", 2, None)


def test_a_flip_is_as_bad_as_the_worst_test():
    assert FLIP_CLASSES[:4] == ("tie", "upstream", "logic", "real")


@pytest.fixture(scope="module")
def near_threshold(small_trace):
    """A configuration with a threshold in the middle of what the recording shows, smoothed from the second step on."""
    first = Replay(small_trace).run(make_config("tri_stage", k=2))
    steps = first.episodes["tri_stage"][0].steps
    values = np.concatenate([step.result.decision.indicators["m_3d_s1"] for step in steps[1:]])
    ordered = np.unique(values[values > 0])
    tau = float(ordered[len(ordered) // 2 : len(ordered) // 2 + 2].mean())  # on no value itself
    return make_config("tri_stage", k=2, background_rate=0.0, tau_2d=tau, tau_3d=tau)


def test_a_pruner_with_a_planted_error_is_found_in_saved_replays(small_trace, near_threshold, tmp_path, monkeypatch):
    Replay(small_trace).run(near_threshold).save(tmp_path / "right")
    right = tri_stage_module.rule_of

    def wrong(config, shape):
        return right(replace(config, beta=config.beta + 0.01), shape)

    monkeypatch.setattr(tri_stage_module, "rule_of", wrong)
    Replay(small_trace).run(near_threshold).save(tmp_path / "wrong")
    found = diff_replays(tmp_path / "right", tmp_path / "wrong")
    (detail,) = found.details
    assert detail.same_configuration
    assert detail.counts["logic"] + detail.counts["real"] > 0
    assert detail.counts["upstream"] == 0
    assert not found.tolerable
    assert detail.actions_relative > 0


def test_lagged_inputs_are_those_of_the_step_before(small_trace, tmp_path, monkeypatch):
    table = make_config("tri_stage", background_rate=0.5).to_json() | {"observe": {"mode": "lagged"}}
    config = Configuration.from_table(table, "lagged")
    Replay(small_trace).run(config).save(tmp_path / "right")
    other = Configuration.from_table({**table, "pruner": {**table["pruner"], "seed": 1}}, "lagged")
    Replay(small_trace).run(other).save(tmp_path / "seeded")
    (detail,) = diff_replays(tmp_path / "right", tmp_path / "seeded").details
    assert not detail.same_configuration
    firsts = {}
    for flip in detail.flips:
        firsts.setdefault(flip.episode, flip)
    assert {flip.step for flip in firsts.values()} == {
        1
    }  # step 1 is unpruned; step 2 decides on equal scores of step 1
    assert {(flip.kind, flip.margin) for flip in firsts.values()} == {("logic", "draw")}
    later = {flip.kind for flip in detail.flips if flip.step > 1}
    assert later <= {"consequence"}  # what the pruned pass shows depends on what was dropped


def test_what_was_saved_before_flips_could_be_told_is_no_reason_to_fail(small_trace, tmp_path):
    """A replay without inputs is compared all the same: what cannot be shown to be rounding is real."""
    from replay.results import REPLAY_FORMAT
    from tracekit.store import Trace, TraceWriter
    from tracekit.store.copying import copy_episode

    config, other = make_config("tri_stage", background_rate=0.5), make_config("tri_stage", background_rate=0.5, seed=1)
    Replay(small_trace, episodes=["close_laptop-3"]).run(config).save(tmp_path / "a")
    Replay(small_trace, episodes=["close_laptop-3"]).run(other).save(tmp_path / "b")
    whole = Trace.open(tmp_path / "b", format=REPLAY_FORMAT)
    with TraceWriter.create(tmp_path / "bare", whole.attributes, format=REPLAY_FORMAT) as writer:
        for info in whole.episodes:
            copy_episode(whole.episode(info.id), writer, lambda key: key.startswith("seen/"), None)
    (detail,) = diff_replays(tmp_path / "a", tmp_path / "bare").details
    assert detail.counts["real"] > 0
    assert detail.counts["logic"] == 0
    with pytest.raises(TracekitError):
        diff_replays(tmp_path / "a", tmp_path / "nowhere")


def test_inputs_of_pruners_that_read_observables_are_compared_by_digest(small_trace, tmp_path):
    from replay import SavedReplay
    from tracekit import keys
    from tracekit.store import copy_trace

    def touch(_episode, key, array):
        return array + 1e-3 if key == keys.STATE else array

    copy_trace(small_trace, tmp_path / "touched", edit=touch)
    options = {"episodes": ["close_laptop-3"]}
    config, other = (make_config("sp_vla", fps="pinned", rate=rate) for rate in (0.5, 0.6))
    Replay(small_trace, **options).run(config).save(tmp_path / "a")
    Replay(small_trace, **options).run(other).save(tmp_path / "b")
    assert "digest/seen" in SavedReplay(tmp_path / "a").episodes("sp_vla")[0][1]
    (detail,) = diff_replays(tmp_path / "a", tmp_path / "b").details
    assert {flip.kind for flip in detail.flips} == {"logic"}
    elsewhere = Replay(tmp_path / "touched", **options).run(config)
    replace(elsewhere, trace_digest=Trace.open(small_trace).digest).save(tmp_path / "c")
    (detail,) = diff_replays(tmp_path / "a", tmp_path / "c").details
    assert {flip.kind for flip in detail.flips} <= {"real"}
