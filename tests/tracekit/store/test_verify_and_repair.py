"""`verify` finds whatever is not as it was written; `repair` keeps every good step and deletes nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from tests.tracekit.store.support import (
    SCHEMA,
    check_episode,
    check_prefix,
    contents,
    leave_cut_off,
    record,
    step_of,
)
from tracekit.errors import TraceError
from tracekit.store import EpisodeInfo, Trace, TraceWriter, files, repair, verify
from tracekit.store.sealed import unseal


def flip(path: Path, offset: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def set_aside(path: Path) -> set[str]:
    return {entry.name for entry in (path / "journal/set_aside").iterdir()}


def test_a_whole_store_is_clean_and_repair_leaves_it_alone(make_trace):
    path = make_trace(5, 0, 3)
    report = verify(path)
    assert (report.clean, report.episodes, report.problems, report.notes) == (True, 3, (), ())
    checked = sum(len(data) for data in contents(path).values())
    assert report.nbytes == checked - sum(
        (path / n).stat().st_size for n in ("zarr.json", "episodes/zarr.json", "journal/zarr.json")
    )
    before = contents(path)
    assert repair(path).actions == ()
    assert contents(path) == before


def test_what_is_no_store_is_refused(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        for verb in (verify, repair):
            with pytest.raises(TraceError, match="is not a trace"):
                verb(path)
    assert not list(tmp_path.iterdir())


def test_a_running_episode_is_a_note_while_its_writer_lives_and_a_problem_after(make_trace):
    path = make_trace(2)
    with TraceWriter.append(path, {}) as writer, writer.episode(EpisodeInfo("run"), SCHEMA) as episode:
        episode.append(step_of(1, 0))
        report = verify(path)
        assert report.clean
        assert report.notes == ("episode 'run' is being written",)
        with pytest.raises(TraceError, match="another writer"):
            repair(path)
        episode.finish()
    leave_cut_off(path, "cut", 3, 1)
    report = verify(path)
    assert [(problem.path, problem.episode) for problem in report.problems] == [("journal/running/cut", "cut")]


def test_a_cut_off_episode_becomes_a_truncated_one(make_trace):
    path = make_trace(2)
    leave_cut_off(path, "cut", 7, 3)
    with TraceWriter.append(path, {}) as writer, pytest.raises(TraceError, match="started before and not finished"):
        writer.episode(EpisodeInfo("cut"), SCHEMA)
    assert repair(path).actions == ("episode 'cut': was cut off; its first 7 steps are kept, marked truncated",)
    assert verify(path).clean
    assert not verify(path).notes
    trace = Trace.open(path)
    check_episode(trace, "cut", 7, 3)
    info = trace.episodes[-1]
    assert (info.steps, info.success, info.truncated, info.task, info.uid) == (7, None, True, "t", 5)
    assert zarr.open_group(path / "episodes/cut", mode="r").attrs["truncated"] is True


def test_an_unfinished_step_of_a_cut_off_episode_is_set_aside(make_trace):
    path = make_trace(1)
    leave_cut_off(path, "cut", 5, 3)
    running = path / "journal/running"
    for shard, cut in (("observables/attention/c.0.0.0.0", 100), ("observation/images/front/c.0.0.0.0", 3)):
        os.truncate(running / "cut" / shard, (running / "cut" / shard).stat().st_size - cut)
    log = (running / "cut.jsonl").read_bytes()
    (running / "cut.jsonl").write_bytes(log[:-10])
    repair(path)
    assert verify(path).clean
    check_prefix(Trace.open(path), "cut", 4, 3, samples=12)
    assert set_aside(path) >= {"cut-observables-attention-c.0.0.0.0-tail", "cut-scalars-int64-c.0.0-tail"}
    tail = path / "journal/set_aside/cut-observables-attention-c.0.0.0.0-tail"
    assert tail.stat().st_size == 60 * 4 + 4 - 100


@pytest.mark.parametrize("steps", [0, 1])
def test_a_cut_off_episode_without_a_whole_step_is_set_aside(make_trace, steps):
    path = make_trace(1)
    leave_cut_off(path, "cut", steps, 3)
    if steps:
        for shard in (path / "journal/running/cut").rglob("c.*"):
            os.truncate(shard, 1)
    assert "set aside" in repair(path).actions[0]
    assert verify(path).clean
    assert set_aside(path) == {"cut", "cut.jsonl"}
    with TraceWriter.append(path, {}) as writer:
        record(writer, "cut", 2, 3)
    check_episode(Trace.open(path), "cut", 2, 3)


@pytest.mark.parametrize("gone", ["log", "folder", "header"])
def test_remains_that_say_nothing_are_set_aside(make_trace, gone):
    path = make_trace(1)
    leave_cut_off(path, "cut", 2, 3)
    running = path / "journal/running"
    if gone == "log":
        (running / "cut.jsonl").unlink()
    elif gone == "folder":
        shutil.rmtree(running / "cut")
    else:
        flip(running / "cut.jsonl", 40)
    assert not verify(path).clean
    repair(path)
    assert verify(path).clean
    assert [info.id for info in Trace.open(path).episodes] == ["ep-0"]


def test_damaged_metadata_is_made_anew_exactly(make_trace):
    path = make_trace(3, 2)
    before = contents(path)
    documents = [name for name in before if name.endswith("zarr.json")]
    manifests = [name for name in before if "/manifests/" in name]
    indices = [name for name in before if "/c." in name]
    assert len(documents) > 20
    for names in (documents, manifests[:1], indices):
        for name in names:
            flip(path / name, -3, 2)
        found = verify(path)
        assert {problem.path for problem in found.problems} == set(names)
        repair(path)
        after = {name: data for name, data in contents(path).items() if "set_aside" not in name}
        assert after == before
        assert verify(path).clean
    assert len(set_aside(path)) == len(documents) + 1 + len(indices)


def test_a_missing_metadata_file_is_made_anew(make_trace):
    path = make_trace(3)
    before = contents(path)
    (path / "zarr.json").unlink()
    shutil.rmtree(path / "episodes/ep-0/nothing")
    (path / "journal/zarr.json").unlink()
    assert len(verify(path).problems) == 3
    repair(path)
    assert contents(path) == before


@pytest.mark.parametrize("line", [1, 2, 3])
def test_a_damaged_journal_line_is_written_again_from_its_manifest(make_trace, line):
    path = make_trace(3, 2)
    before = contents(path)
    journal = path / "journal/commits.jsonl"
    start = journal.read_bytes().index(journal.read_bytes().splitlines(keepends=True)[line - 1])
    flip(journal, start + 50)
    said = f"is damaged or missing in line {line}" if line < 3 else r"ends in \d+ bytes of an unfinished line"
    assert re.fullmatch(said, verify(path).problems[0].what)
    for use in (lambda: Trace.open(path), lambda: TraceWriter.append(path, {})):
        with pytest.raises(TraceError, match=r"(damaged|lost its end); run `tracekit repair` on the trace"):
            use()
    repair(path)
    assert {name: data for name, data in contents(path).items() if "set_aside" not in name} == before
    assert set_aside(path) == {"journal-commits.jsonl"}


@pytest.mark.parametrize("keep", ["none", "first line", "all but the last"])
def test_a_journal_that_lost_lines(make_trace, keep):
    path = make_trace(3, 2, 4)
    before = contents(path)
    journal = path / "journal/commits.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join({"none": [], "first line": lines[:1], "all but the last": lines[:-1]}[keep]))
    assert not verify(path).clean
    with pytest.raises(TraceError, match="run `tracekit repair` on the trace"):
        Trace.open(path)
    repair(path)
    assert {name: data for name, data in contents(path).items() if "set_aside" not in name} == before


def test_a_line_missing_in_the_middle_and_one_that_merged_with_its_neighbour(make_trace):
    path = make_trace(1, 1, 1)
    before = contents(path)
    journal = path / "journal/commits.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    for damaged in (lines[0] + lines[1] + lines[3], lines[0] + lines[1][:-1] + b"\x0b" + b"".join(lines[2:])):
        journal.write_bytes(damaged)
        assert not verify(path).clean
        with pytest.raises(TraceError, match=r"line [23] of the journal is damaged"):
            Trace.open(path)
        repair(path)
        assert {name: data for name, data in contents(path).items() if "set_aside" not in name} == before


def test_a_commit_cut_between_journal_and_move_counts(make_trace):
    path = make_trace(2, 3)
    (path / "episodes/ep-1").rename(path / "journal/running/ep-1")
    check_episode(Trace.open(path), "ep-1", 3, 1)
    assert verify(path).clean
    TraceWriter.append(path, {}).close()
    assert (path / "episodes/ep-1").is_dir()
    check_episode(Trace.open(path), "ep-1", 3, 1)


@pytest.mark.parametrize("torn", [0, 1, 100])
def test_a_commit_cut_before_or_in_its_journal_line_is_completed(make_trace, torn):
    path = make_trace(2, 3)
    (path / "episodes/ep-1").rename(path / "journal/running/ep-1")
    journal = path / "journal/commits.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:torn])
    trace = Trace.open(path)
    assert [info.id for info in trace.episodes] == ["ep-0"]
    check_episode(trace, "ep-0", 2, 0)
    assert not verify(path).clean
    assert repair(path).actions[-1] == "episode 'ep-1': was complete but for its commit; committed"
    assert verify(path).clean
    assert not Trace.open(path).episodes[1].truncated
    check_episode(Trace.open(path), "ep-1", 3, 1)


def test_a_torn_journal_line_does_not_stop_the_next_writer(make_trace):
    path = make_trace(2)
    journal = path / "journal/commits.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"crc32c":"00')
    assert [info.id for info in Trace.open(path).episodes] == ["ep-0"]
    with TraceWriter.append(path, {}) as writer:
        record(writer, "new", 2, 1)
    assert verify(path).clean
    check_episode(Trace.open(path), "new", 2, 1)


@pytest.mark.parametrize("shard", ["observables/attention/c.0.0.0.0", "observation/images/front/c.0.0.0.0"])
def test_steps_before_damaged_data_are_kept(make_trace, shard):
    path = make_trace(8, 6)
    original = contents(path / "episodes/ep-1")
    flip(path / "episodes/ep-1" / shard, 500)
    damaged = (path / "episodes/ep-1" / shard).read_bytes()
    with pytest.raises(TraceError, match=rf"{shard.rpartition('/')[2]} is damaged at step \d; run `tracekit verify`"):
        Trace.open(path).episode("ep-1").read(shard.rpartition("/")[0])
    repair(path)
    assert verify(path).clean
    trace = Trace.open(path)
    check_episode(trace, "ep-0", 8, 0)
    info = trace.episodes[1]
    assert info.truncated
    assert 0 < info.steps < 6
    assert (info.success, info.attributes) == (False, {"seed": 1})
    check_prefix(trace, "ep-1", info.steps, 1, samples=18)
    assert contents(path / "journal/set_aside/ep-1") == {**original, shard: damaged}
    again = contents(path)
    assert repair(path).actions == ()
    assert contents(path) == again


def test_a_truncated_shard_keeps_its_whole_steps(make_trace):
    path = make_trace(6)
    shard = path / "episodes/ep-0/observation/images/front/c.0.0.0.0"
    os.truncate(shard, shard.stat().st_size // 2)
    with pytest.raises(TraceError, match=r"front/c\.0\.0\.0\.0 (is damaged at step|is cut short)"):
        Trace.open(path).episode("ep-0").read("observation/images/front")
    repair(path)
    assert verify(path).clean
    steps = Trace.open(path).episodes[0].steps
    assert 0 < steps < 6
    check_prefix(Trace.open(path), "ep-0", steps, 0, samples=18)


def test_damage_in_a_stream_costs_samples_of_that_stream_only(make_trace):
    path = make_trace(4)
    flip(path / "episodes/ep-0/streams/arm/value/c.0.0", 5 * 20 + 2)
    repair(path)
    assert verify(path).clean
    assert Trace.open(path).episodes[0].truncated
    check_prefix(Trace.open(path), "ep-0", 4, 0, samples=5)


def test_an_episode_damaged_in_its_first_step_is_set_aside_and_its_id_is_free(make_trace):
    path = make_trace(4, 3)
    for name in ("ep-0", "ep-1"):
        for shard in (path / "episodes" / name).rglob("c.*"):
            flip(shard, 1)
    repair(path)
    assert verify(path).clean
    assert Trace.open(path).episodes == ()
    assert {"ep-0", "ep-1"} <= set_aside(path)
    with TraceWriter.append(path, {}) as writer:
        record(writer, "ep-0", 2, 9)
    check_episode(Trace.open(path), "ep-0", 2, 9)


def test_a_missing_episode_and_a_foreign_one(make_trace):
    path = make_trace(2, 2)
    (path / "episodes/ep-0").rename(path / "episodes/other")
    assert {problem.episode for problem in verify(path).problems} == {"ep-0", "other"}
    with pytest.raises(TraceError, match="episode 'other' is not in the journal"):
        Trace.open(path)
    repair(path)
    assert verify(path).clean
    assert [info.id for info in Trace.open(path).episodes] == ["ep-1"]
    assert "other" in set_aside(path)


def test_a_store_that_lost_everything_but_its_name(make_trace):
    path = make_trace(2)
    shutil.rmtree(path / "journal/manifests")
    (path / "journal/commits.jsonl").write_bytes(b"")
    (path / "zarr.json").write_text("{}")
    (path / "episodes/ep-0/zarr.json").write_text("{}")
    repair(path)
    assert verify(path).clean
    assert Trace.open(path).episodes == ()
    assert "ep-0" in set_aside(path)


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 29])
def test_a_repair_that_is_interrupted_anywhere_can_be_repeated(make_trace, tmp_path, monkeypatch, every):
    path = make_trace(4, 5, 3, 2)
    leave_cut_off(path, "cut", 4, 7)
    flip(path / "episodes/ep-1/observables/attention/c.0.0.0.0", 600)
    flip(path / "episodes/ep-0/zarr.json", 5)
    flip(path / "episodes/ep-2/observation/images/front/c.0.0.0.0", -3)
    flip(next((path / "journal/manifests").glob("ep-3@*.json")), 30)
    flip(path / "journal/commits.jsonl", 30)
    copy = tmp_path / "copy"
    for stop in range(0, 1000, every):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(path, copy)
        finished = repair_up_to(stop, copy, monkeypatch)
        repair(copy)
        assert verify(copy).clean, stop
        trace = Trace.open(copy)
        assert {info.id for info in trace.episodes} == {"ep-0", "ep-1", "ep-2", "ep-3", "cut"}, stop
        check_episode(trace, "ep-0", 4, 0)
        check_episode(trace, "ep-2", 3, 2)
        check_episode(trace, "ep-3", 2, 3)
        check_episode(trace, "cut", 4, 7)
        check_prefix(trace, "ep-1", 2, 1, samples=15)
        if finished:
            break
    assert finished
    assert stop > 100


def repair_up_to(stop: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Repair, interrupted before its file operation number `stop`; whether it came to an end before that."""
    done = 0

    def counted(operation):
        def run(*arguments):
            nonlocal done
            if done == stop:
                raise KeyboardInterrupt
            done += 1
            return operation(*arguments)

        return run

    with monkeypatch.context() as patched:
        for name in ("rename", "sync", "sync_folder", "truncate", "write"):
            patched.setattr(files, name, counted(getattr(files, name)))
        try:
            repair(path)
        except KeyboardInterrupt:
            return False
    return True


def test_manifest_says_what_the_group_says(make_trace):
    path = make_trace(2)
    manifest = unseal((path / "journal/manifests/ep-0@1.json").read_bytes())
    attributes = json.loads((path / "episodes/ep-0/zarr.json").read_bytes())["attributes"]
    assert attributes["arrays"] == manifest["arrays"]
    assert np.isclose(attributes["uid"], 2**63)
