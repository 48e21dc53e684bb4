"""Damage costs no more than what it hit: an optional array its bad steps, a lost journal nothing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.tracekit.store.support import SCHEMA, check_episode, check_prefix, contents, expected, record
from tests.tracekit.store.test_verify_and_repair import flip, repair_up_to, set_aside
from tracekit.errors import TraceError
from tracekit.store import Trace, TraceWriter, prune_store, repair, verify

DEPTH = "episodes/ep-1/depth/c.0.0.0"
REST = SCHEMA.keys() - {"depth", "never"}


def check_rest(path: Path, steps: int, seed: int) -> None:
    """All of episode ep-1 but its depth is as it was."""
    episode = Trace.open(path).episode("ep-1")
    assert (episode.info.steps, episode.info.truncated) == (steps, False)
    assert set(episode.keys()) - {"depth"} == REST
    for key in REST:
        np.testing.assert_array_equal(episode.read(key), expected(key, steps, seed))


def check_depth_lacks(path: Path, bad: int) -> None:
    episode = Trace.open(path).episode("ep-1")
    whole = expected("depth", 8, 1)
    np.testing.assert_array_equal(episode.present("depth"), [step % 2 == 1 and step != bad for step in range(8)])
    for step in {1, 3, 5, 7} - {bad}:
        np.testing.assert_array_equal(episode.read("depth", step), whole[step])


@pytest.mark.parametrize("bad", [1, 3, 7])
def test_a_bad_byte_in_an_optional_array_costs_its_step_of_that_array(make_trace, bad):
    path = make_trace(2, 8)
    before = contents(path)
    flip(path / DEPTH, 20 * (bad // 2) + 5)
    damaged = (path / DEPTH).read_bytes()
    assert repair(path).actions == ("episode 'ep-1': 'depth' is damaged; 3 of its 4 steps are kept, it is set aside",)
    assert verify(path).clean
    check_rest(path, 8, 1)
    check_depth_lacks(path, bad)
    assert (path / "journal/set_aside/episodes-ep-1-depth-c.0.0.0").read_bytes() == damaged
    after = contents(path)
    changed = {name for name in before if before[name] != after.get(name)}
    group = "episodes/ep-1/zarr.json"  # says the SHA-256 of the shards
    assert changed == {DEPTH, group, "journal/commits.jsonl", "journal/manifests/ep-1@2.json"}
    assert repair(path).actions == ()


@pytest.mark.parametrize("how", ["every chunk", "missing", "another's", "a folder"])
def test_an_optional_array_without_a_good_step_leaves_the_episode(make_trace, how):
    path = make_trace(2, 8)
    if how == "every chunk":
        for step in range(4):
            flip(path / DEPTH, 20 * step)
    elif how == "another's":
        shutil.copy(other_depth(make_trace), path / DEPTH)
    else:
        (path / DEPTH).unlink()
        if how == "a folder":
            (path / DEPTH).mkdir()
    assert "'depth' is damaged; 0 of its 4 steps are kept" in repair(path).actions[0]
    assert verify(path).clean
    assert not [note for note in verify(path).notes if "set_aside" not in note]
    check_rest(path, 8, 1)
    with pytest.raises(TraceError, match=r"lacks 'depth' in episode 'ep-1' \(taken away by .* repair as damaged\)"):
        Trace.open(path).episode("ep-1").read("depth")
    check_episode(Trace.open(path), "ep-0", 2, 0)
    assert "episodes-ep-1-depth" in set_aside(path)
    with pytest.raises(TraceError, match="may be dropped"):
        prune_store(path, ["nothing like it"])


def other_depth(make_trace) -> Path:
    """A shard as long and as whole as the one that is to be replaced."""
    path = make_trace(2, 2, 2, name="other")
    with TraceWriter.append(path, {}) as writer:
        record(writer, "long", 8, 7)
    return path / "episodes/long/depth/c.0.0.0"


def test_damage_in_optional_and_other_arrays_at_once(make_trace):
    path = make_trace(2, 8)
    flip(path / DEPTH, 5)
    flip(path / "episodes/ep-1/observables/attention/c.0.0.0.0", 244 * 6 + 9)
    repair(path)
    assert verify(path).clean
    info = Trace.open(path).episodes[1]
    assert (info.steps, info.truncated) == (6, True)
    episode = Trace.open(path).episode("ep-1")
    np.testing.assert_array_equal(episode.present("depth"), [False, False, False, True, False, True])
    np.testing.assert_array_equal(episode.read("observables/attention"), expected("observables/attention", 6, 1))


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_a_rescue_that_is_interrupted_anywhere_can_be_repeated(make_trace, tmp_path, monkeypatch, every):
    path = make_trace(2, 8)
    flip(path / DEPTH, 20 + 5)
    flip(path / "episodes/ep-1/reward/c.0", 3)
    for step in range(1, 4):
        flip(path / "episodes/ep-1/reward/c.0", 12 * step + 3)
    copy = tmp_path / "copy"
    for stop in range(0, 200, every):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(path, copy)
        finished = repair_up_to(stop, copy, monkeypatch)
        repair(copy)
        assert verify(copy).clean, stop
        assert "reward" not in Trace.open(copy).episode("ep-1")
        check_depth_lacks(copy, 3)
        check_episode(Trace.open(copy), "ep-0", 2, 0)
        assert not [note for note in verify(copy).notes if "set_aside" not in note], stop
        if finished:
            break
    assert finished
    assert stop > 10


def test_a_store_that_lost_its_journal_folder(make_trace):
    path = make_trace(3, 2, 5)
    before = contents(path / "episodes")
    shutil.rmtree(path / "journal")
    assert not verify(path).clean
    actions = repair(path).actions
    assert sum("only the checksums of its own chunks vouch for it" in action for action in actions) == 3
    assert verify(path).clean
    trace = Trace.open(path)
    assert trace.attributes == {"policy": {"name": "mla", "widths": [1, 2]}}
    for seed, steps in enumerate((3, 2, 5)):
        check_episode(trace, f"ep-{seed}", steps, seed)
    assert not any(info.truncated for info in trace.episodes)
    assert contents(path / "episodes") == before
    assert repair(path).actions == ()
    with TraceWriter.append(path, {}) as writer:
        record(writer, "new", 2, 7)
    check_episode(Trace.open(path), "new", 2, 7)


def exchange(path):
    first, second = (path / f"episodes/{name}/observables/attention/c.0.0.0.0" for name in ("ep-0", "ep-1"))
    whole = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(whole)


def say(path, **changes):
    group = path / "episodes/ep-0/zarr.json"
    said = json.loads(group.read_bytes())
    group.write_text(json.dumps({**said, "attributes": {**said["attributes"], **changes}}))


@pytest.mark.parametrize(
    ("harm", "kept"),
    [
        (exchange, {"ep-0": 0, "ep-1": 0, "ep-2": 4}),
        (lambda path: say(path, task="another"), {"ep-1": 3, "ep-2": 4}),
        (lambda path: say(path, digest=None, attributes="x"), {"ep-1": 3, "ep-2": 4}),
        (lambda path: say(path, digest=None, steps="x"), {"ep-1": 3, "ep-2": 4}),
        (lambda path: say(path, digest=None, dropped=[5]), {"ep-1": 3, "ep-2": 4}),
        (
            lambda path: say(path, digest=None, arrays=[["a", {"dtype": "int8", "attributes": []}]]),
            {"ep-1": 3, "ep-2": 4},
        ),
    ],
    ids=["two shards exchanged", "another task", "text", "steps", "dropped", "arrays"],
)
def test_without_a_journal_an_episode_is_believed_by_its_own_checksums_only(make_trace, harm, kept):
    path = make_trace(3, 3, 4)
    shutil.rmtree(path / "journal")
    harm(path)
    repair(path)
    assert verify(path).clean
    assert {info.id: info.steps for info in Trace.open(path).episodes} == kept
    for name, steps in kept.items():
        if steps:
            check_episode(Trace.open(path), name, steps, int(name[3:]))
        else:  # of a step nothing is certain, of the stream beside the steps all
            check_prefix(Trace.open(path), name, 0, int(name[3:]), samples=9)
    assert {"ep-0", "ep-1", "ep-2"} - {name for name, steps in kept.items() if steps} <= set_aside(path)


@pytest.mark.parametrize("codec", ["observation/images/front", "observables/attention"])
def test_a_lost_journal_and_damage_beside_it(make_trace, codec):
    """What can be told without the journal is kept: an index of raw chunks, steps before a bad one, other metadata."""
    path = make_trace(3, 6, 5, 4)
    shutil.rmtree(path / "journal")
    flip(path / "episodes/ep-0/tokens/kept/c.0.0", -3)
    flip(path / f"episodes/ep-1/{codec}/c.0.0.0.0", 500)
    flip(path / "episodes/ep-2/nothing/zarr.json", 30)
    flip(path / "episodes/ep-3/zarr.json", 30)
    repair(path)
    assert verify(path).clean
    trace = Trace.open(path)
    found = {info.id: info for info in trace.episodes}
    assert found.keys() == {"ep-0", "ep-1", "ep-2"}
    check_episode(trace, "ep-0", 3, 0)
    check_episode(trace, "ep-2", 5, 2)
    assert found["ep-1"].truncated
    assert 0 < found["ep-1"].steps < 6
    check_prefix(trace, "ep-1", found["ep-1"].steps, 1, samples=18)
    assert "ep-3" in set_aside(path)


def test_a_lost_manifest_and_damage_beside_it(make_trace):
    path = make_trace(4, 6)
    (path / "journal/manifests/ep-1@2.json").unlink()
    flip(path / DEPTH, 5)
    repair(path)
    assert verify(path).clean
    check_rest(path, 6, 1)
    check_episode(Trace.open(path), "ep-0", 4, 0)


@pytest.mark.parametrize(
    "name",
    [
        "episodes/ep-1/observables/attention/c.0.0.0.0",
        "episodes/ep-1/zarr.json",
        "zarr.json",
        "journal/manifests/ep-1@2.json",
        "journal/commits.jsonl",
    ],
)
@pytest.mark.parametrize("kind", ["folder", "dangling link", "pipe"])
def test_something_else_in_the_place_of_a_file(make_trace, name, kind):
    path = make_trace(3, 6)
    (path / name).unlink()
    if kind == "folder":
        (path / name).mkdir()
    elif kind == "pipe":
        os.mkfifo(path / name)
    else:
        (path / name).symlink_to("nowhere")
    assert not verify(path).clean
    repair(path)
    assert verify(path).clean
    check_episode(Trace.open(path), "ep-0", 3, 0)
    if "attention" not in name:
        check_episode(Trace.open(path), "ep-1", 6, 1)


def test_files_that_are_no_part_of_the_store_are_named(make_trace):
    path = make_trace(2)
    strays = [
        "notes.txt",
        "episodes/.DS_Store",
        "journal/old",
        "journal/manifests/ep-0@7.json",
        "episodes/ep-0/depth/c.0.0.0~",
    ]
    for name in strays:
        (path / name).write_text("x")
    report = verify(path)
    assert report.clean
    assert {note.partition(" is no part of the ")[0] for note in report.notes} == set(strays)
