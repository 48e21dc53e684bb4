"""A run reproduces, stops and goes on without a trace, refuses another plan, and leaves a policy with its papers."""

import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from recorders.sim import Environment, Expert
from recorders.sim.train import run as running
from recorders.sim.train import train
from recorders.sim.train.batches import Frames, make_batch
from recorders.sim.train.demonstrations import LANDMARKS, Demonstration, demonstration_path, record_demonstrations
from recorders.sim.train.fresh import fresh_policy
from recorders.sim.train.plan import TrainingPlan
from recorders.sim.train.seeds import MOST_EPISODES, TRAINING_SEEDS, VALIDATION_SEEDS, refuse_training_seeds
from tests.small import WIDTHS, make_policy
from tracekit.errors import ConfigError, PolicyError, TraceError
from tracekit.model import (
    MLA,
    REFERENCE_WORDS,
    WordTokenizer,
    initialise,
    load_policy_directory,
    reference,
    save_policy,
)


def tiny(seed=3, *, trained=False):
    """As in `tests.small`, but unfrozen."""
    return initialise(MLA(replace(reference(), **WIDTHS), WordTokenizer(REFERENCE_WORDS), trained=trained), seed)


@pytest.fixture(autouse=True)
def few_held_out_frames(monkeypatch):
    monkeypatch.setattr("recorders.sim.train.plan._HELD_OUT", 1)
    monkeypatch.setattr(running, "_HELD_OUT_FRAMES", 4)
    monkeypatch.setattr(running, "_HELD_OUT_EVERY", 3)


def curve(folder):
    lines = (folder / "curve.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def same_weights(first, second):
    a, b = (load_policy_directory(folder / "policy").state_dict() for folder in (first, second))
    return all(torch.equal(a[name], b[name]) for name in a)


def test_the_same_plan_gives_the_same_losses_with_any_threads_and_another_seed_others(demonstrations, plan, tmp_path):
    short = replace(plan, steps=5, batch=11)  # two parts, of which one is short
    for name, threads in (("first", 1), ("second", 2)):
        train(tmp_path / name, demonstrations, short, policy=tiny(), threads=threads)
    train(tmp_path / "other", demonstrations, replace(short, seed=1), policy=tiny())
    assert len(curve(tmp_path / "first")) == 5
    assert curve(tmp_path / "first") == curve(tmp_path / "second")
    assert same_weights(tmp_path / "first", tmp_path / "second")
    assert curve(tmp_path / "first")[0]["loss"] != curve(tmp_path / "other")[0]["loss"]


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(demonstrations, plan, tmp_path):
    train(tmp_path / "whole", demonstrations, plan, policy=tiny())
    stopped = train(tmp_path / "halves", demonstrations, plan, policy=tiny(), hours=1e-9)
    assert stopped.step == 1
    with (tmp_path / "halves" / "curve.jsonl").open("a") as file:  # steps after the last save, lost with the process
        file.write(json.dumps({"step": 2, "loss": 0.0}) + "\n")
    finished = train(tmp_path / "halves", demonstrations, plan, policy=tiny())
    assert finished.step == plan.steps
    assert curve(tmp_path / "whole") == curve(tmp_path / "halves")
    assert same_weights(tmp_path / "whole", tmp_path / "halves")


def test_losses_fall(demonstrations, plan, tmp_path):
    train(tmp_path / "run", demonstrations, replace(plan, steps=30, learning_rate=2e-2), policy=tiny())
    losses = [entry["loss"] for entry in curve(tmp_path / "run")]
    assert np.mean(losses[-8:]) < 0.85 * np.mean(losses[:5])


def test_tokens_are_thinned_in_the_first_half_only():
    plan = TrainingPlan(steps=10)
    assert [plan.kept_tokens(step, 256) for step in (0, 4, 5, 9)] == [96, 96, 256, 256]
    assert replace(plan, blind=True).kept_tokens(9, 256) == 0
    assert [replace(plan, thinned=0.2).kept_tokens(step, 256) for step in (1, 2)] == [96, 256]
    with pytest.raises(ConfigError, match=r"--thinned 0.6"):
        TrainingPlan(thinned=0.6)


def test_without_auxiliary_losses_there_is_one_loss(demonstrations, plan, tmp_path):
    train(tmp_path / "run", demonstrations, replace(plan, steps=1, auxiliary=False), policy=tiny())
    assert set(curve(tmp_path / "run")[0]) == {"step", "loss", "noise", "learning_rate", "held_out"}


def test_the_card_carries_the_digest_of_the_weights_beside_it(demonstrations, plan, tmp_path):
    summary = train(tmp_path / "run", demonstrations, replace(plan, steps=2), policy=tiny())
    policy = load_policy_directory(tmp_path / "run" / "policy")
    assert policy.trained
    assert policy.identity.weights_digest == summary.weights_digest
    card = (tmp_path / "run" / "MODEL_CARD.md").read_text()
    assert summary.weights_digest in card
    assert summary.demonstrations_digest in card
    assert "Not evaluated yet." in card
    assert json.loads((tmp_path / "run" / "training.json").read_text()) == summary.to_json()


def test_resuming_starts_from_weights_with_a_fresh_optimiser_and_says_so(demonstrations, plan, tmp_path):
    first = train(tmp_path / "first", demonstrations, replace(plan, steps=2), policy=tiny())
    second = train(tmp_path / "second", demonstrations, replace(plan, steps=1), resume=tmp_path / "first" / "policy")
    assert second.plan.resumed_from == first.weights_digest
    assert second.step == 1
    assert f"`{first.weights_digest}`, with a fresh optimiser" in (tmp_path / "second" / "MODEL_CARD.md").read_text()


def test_resuming_starts_where_the_weights_are(demonstrations, plan, tmp_path):
    save_policy(tiny(), tmp_path / "start")
    still = replace(plan, steps=1, learning_rate=1e-12)
    train(tmp_path / "run", demonstrations, still, resume=tmp_path / "start")
    start, end = (
        dict(load_policy_directory(where).named_parameters())
        for where in (tmp_path / "start", tmp_path / "run" / "policy")
    )
    for name in start:
        torch.testing.assert_close(end[name], start[name], rtol=0, atol=1e-9)


@pytest.mark.parametrize("blind", [True, False])
def test_a_blind_policy_and_one_with_eyes_are_not_trained_as_each_other(plan, tmp_path, blind):
    save_policy(fresh_policy(replace(plan, blind=not blind)), tmp_path / "start")
    with pytest.raises(ConfigError, match="leave out --blind" if blind else "add --blind"):
        train(tmp_path / "run", tmp_path / "data", replace(plan, blind=blind), resume=tmp_path / "start")
    assert not (tmp_path / "run").exists()


def test_the_card_lists_every_run_that_the_weights_come_from(demonstrations, plan, tmp_path):
    short = replace(plan, steps=1)
    first = train(tmp_path / "first", demonstrations, replace(plan, steps=2), policy=tiny())
    second = train(tmp_path / "second", demonstrations, short, resume=tmp_path / "first" / "policy")
    third = train(tmp_path / "third", demonstrations, short, resume=tmp_path / "second" / "policy")
    assert [run["weights_digest"] for run in third.before] == [first.weights_digest, second.weights_digest]
    assert [run["step"] for run in third.before] == [2, 1]
    card = (tmp_path / "third" / "MODEL_CARD.md").read_text()
    assert f"| `{first.weights_digest[:12]}` | {first.scene_version} | 2 of 2 | 1 |" in card
    unknown = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "second" / "policy", unknown)
    (tmp_path / "training.json").write_text(json.dumps({"weights_digest": "other"}))  # papers of other weights
    assert train(tmp_path / "fourth", demonstrations, short, resume=unknown).before == ()


def test_the_folder_of_another_plan_is_refused(demonstrations, plan, tmp_path):
    train(tmp_path / "run", demonstrations, replace(plan, steps=1), policy=tiny())
    before = (tmp_path / "run" / "training.json").read_bytes()
    with pytest.raises(ConfigError, match="another seed, steps"):
        train(tmp_path / "run", demonstrations, replace(plan, steps=2, seed=4), policy=tiny())
    assert (tmp_path / "run" / "training.json").read_bytes() == before


def test_a_blind_policy_learns_from_the_same_demonstrations(demonstrations, plan, tmp_path):
    summary = train(tmp_path / "run", demonstrations, replace(plan, steps=2, blind=True))
    assert load_policy_directory(tmp_path / "run" / "policy").config.name == "blind"
    assert set(summary.held_out) == {"noise", "landmarks", "clean_action"}


def test_demonstrations_are_the_same_every_time_and_recorded_once(demonstrations, plan, tmp_path):
    task, seed = plan.demonstrations[0]
    assert record_demonstrations(tmp_path, [(task, seed)]) == 1
    assert record_demonstrations(tmp_path, [(task, seed)]) == 0
    again = Demonstration.load(demonstration_path(tmp_path, task, seed))
    first = Demonstration.load(demonstration_path(demonstrations, task, seed))
    assert again.images == first.images
    assert again.instruction == first.instruction
    for name in ("points", "state", "action", "landmarks", "patch_xyz", "patch_pixels"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))


def test_labels_point_at_the_named_object(demonstrations, plan):
    for task, seed in plan.demonstrations:
        episode = Demonstration.load(demonstration_path(demonstrations, task, seed))
        named = episode.patch_pixels[0, :, 0]
        assert named.sum() > 100
        middle = np.average(episode.patch_xyz[0][named > 0], axis=0, weights=named[named > 0])
        assert np.linalg.norm(middle[:2] - episode.landmarks[0, 1, :2]) < 0.15
        assert np.isnan(episode.landmarks[:, 2]).all() == (task == "close_box")
        assert np.abs(episode.action).max() < 1.5
        assert len(episode.images) == len(episode.points) == len(episode) + 1


def test_labels_tell_where_what_has_to_be_moved_lies(demonstrations, plan):
    frames = Frames(demonstrations, plan.demonstrations)
    batch = make_batch(tiny(), frames, range(len(frames)), np.random.default_rng(0))
    item, places = batch.labels.item, batch.labels.landmarks[:, LANDMARKS.index("item")]
    moves = ~places.isnan().any(1)
    assert moves.any()  # a banana is moved
    assert not moves.all()  # a box is not
    assert not item[~moves].any()
    seen = batch.labels.patch_xyz[moves].nan_to_num(9.0)
    distance = (seen - places[moves][:, None]).norm(dim=-1)
    near = torch.exp(-((distance / 0.03) ** 2) / 2)
    torch.testing.assert_close(item[moves], near * (near > 0.1), rtol=1e-4, atol=1e-6)
    assert item[moves].any(1).float().mean() > 0.5  # it is seen in most frames


@pytest.mark.parametrize("damage", [lambda _: b"", lambda whole: whole[:1000], lambda _: _npy()])
def test_a_damaged_demonstration_is_named(demonstrations, plan, tmp_path, damage):
    task, seed = plan.demonstrations[0]
    path = demonstration_path(tmp_path, task, seed)
    path.parent.mkdir()
    path.write_bytes(damage(demonstration_path(demonstrations, task, seed).read_bytes()))
    with pytest.raises(TraceError, match=rf"{seed}.npz: not a demonstration"):
        Frames(tmp_path, [(task, seed)])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda one: {"state": one.state[:2]}, "of other shapes"),
        (lambda one: {"state": one.state[:, :5]}, "of other shapes"),
        (lambda one: {"patch_xyz": one.patch_xyz[:-1]}, "of other shapes"),
        (lambda one: {"patch_pixels": one.patch_pixels[:, :10]}, "of other shapes"),
        (lambda one: {"landmarks": one.landmarks[:, :2]}, "of other shapes"),
        (lambda one: {"points": one.points[:, :500]}, "of other shapes"),
        (lambda one: {"images": one.images[:-1]}, "pictures or clouds are missing"),
        (lambda one: {"points": one.points[:-1]}, "pictures or clouds are missing"),
        (lambda one: {"state": one.state * np.nan}, "not finite"),
        (lambda one: {"instruction": "close the box"}, "names no colour"),
    ],
)
def test_a_demonstration_that_lacks_something_is_named_before_it_is_learned_from(
    demonstrations, plan, tmp_path, damage, words
):
    task, seed = plan.demonstrations[0]
    one = Demonstration.load(demonstration_path(demonstrations, task, seed))
    replace(one, **damage(one)).save(demonstration_path(tmp_path, task, seed))
    with pytest.raises(TraceError, match=rf"{seed}.npz: not a demonstration \(.*{words}"):
        Frames(tmp_path, [(task, seed)])


def test_a_damaged_picture_is_named(demonstrations, plan):
    one = Demonstration.load(demonstration_path(demonstrations, *plan.demonstrations[0]))
    with pytest.raises(TraceError, match=rf"{one.task}/{one.seed}.npz: picture 1 is damaged"):
        replace(one, images=(one.images[0], b"noise" * 9)).image(1)


def test_episodes_in_which_the_expert_failed_are_left_out(demonstrations, plan, tmp_path):
    episodes = [Demonstration.load(demonstration_path(demonstrations, *where)) for where in plan.demonstrations]
    for number, episode in enumerate(episodes):
        replace(episode, success=number == 1).save(demonstration_path(tmp_path, episode.task, episode.seed))
    frames = Frames(tmp_path, plan.demonstrations)
    assert frames.failed == len(episodes) - 1
    assert [episode.task for episode in frames.episodes] == [episodes[1].task]
    assert len(frames) == len(episodes[1])


def test_noise_is_executed_and_never_a_label(monkeypatch, tmp_path):
    acted, executed, act, step = [], [], Expert.act, Environment.step
    monkeypatch.setattr(Expert, "act", lambda self: acted.append(act(self)) or acted[-1].copy())
    monkeypatch.setattr(Environment, "step", lambda self, action: executed.append(action.copy()) or step(self, action))
    seeds = range(TRAINING_SEEDS, TRAINING_SEEDS + 3)
    record_demonstrations(tmp_path, [("close_box", seed) for seed in seeds])
    labels = [Demonstration.load(demonstration_path(tmp_path, "close_box", seed)).action for seed in seeds]
    np.testing.assert_array_equal(np.concatenate(labels), acted)
    moved = np.abs(np.subtract(executed, acted)).max(1) > 0
    assert 0.05 < moved.mean() < 0.6
    assert not np.subtract(executed, acted)[:, -1].any()  # the jaws are left alone


def test_a_policy_that_takes_other_clouds_is_not_trained(demonstrations, plan, tmp_path):
    save_policy(make_policy(points=512), tmp_path / "start")
    with pytest.raises(PolicyError, match="takes 512 points, demonstrations have 1024"):
        train(tmp_path / "run", demonstrations, replace(plan, steps=1), resume=tmp_path / "start")


def test_weights_that_are_not_finite_are_not_trained_on(demonstrations, plan, tmp_path):
    spoiled = tiny()
    with torch.no_grad():
        next(iter(spoiled.parameters())).fill_(torch.nan)
    with pytest.raises(PolicyError, match=r"training step 1: .* not finite"):
        train(tmp_path / "run", demonstrations, replace(plan, steps=2), policy=spoiled)
    assert not (tmp_path / "run" / "policy").exists()


def test_steps_before_one_that_is_not_finite_are_kept(demonstrations, plan, tmp_path):
    with pytest.raises(PolicyError, match=r"training step 2: .* not finite"):
        train(tmp_path / "run", demonstrations, replace(plan, learning_rate=1e38), policy=tiny())
    assert json.loads((tmp_path / "run" / "training.json").read_text())["step"] == 1
    assert [entry["step"] for entry in curve(tmp_path / "run")] == [1]


def _npy():
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


def test_every_epoch_shows_every_frame_once(demonstrations, plan):
    frames = Frames(demonstrations, plan.demonstrations)
    count = len(frames)
    drawn = [index for step in range(count) for index in frames.drawn(0, step, 3)]
    for epoch in range(3):
        assert sorted(drawn[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert drawn[:count] != drawn[count : 2 * count]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "--steps 0"),
        ({"tasks": ("close_boks",)}, "close_box"),
        ({"tasks": ("close_box", "close_box")}, "each once"),
        ({"seed": -1}, "--seed -1"),
        ({"seed": 2**63}, "--seed 9223372036854775808"),
        ({"episodes": 1_000_012}, "--episodes 1000012: give at most 100000"),
    ],
)
def test_unusable_plans_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        TrainingPlan(**wrong)


def test_what_cannot_be_trained_with_is_refused_before_anything_is_written(plan, tmp_path):
    (tmp_path / "data").write_text("mine")
    for options, message in (
        ({"threads": 0}, "--threads 0"),
        ({"threads": 100_000}, "--threads 100000: give 1"),
        ({}, "is a file"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(tmp_path / "run", tmp_path / "data", plan, policy=tiny(), **options)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("hours", [float("nan"), float("inf"), 0.0, -1.0])
def test_hours_that_never_end_or_are_none_are_refused(plan, tmp_path, hours):
    with pytest.raises(ConfigError, match="--hours"):
        train(tmp_path / "run", tmp_path / "data", plan, policy=tiny(), hours=hours)
    assert not (tmp_path / "run").exists()


def test_training_seeds_are_kept_from_evaluations():
    refuse_training_seeds(0, TRAINING_SEEDS)
    with pytest.raises(ConfigError, match="--seed -1: give a non-negative"):
        refuse_training_seeds(-1, 2)
    assert TrainingPlan(episodes=MOST_EPISODES).demonstrations[-1][1] < VALIDATION_SEEDS
    with pytest.raises(ConfigError, match="are for training"):
        refuse_training_seeds(TRAINING_SEEDS - 1, 2)
