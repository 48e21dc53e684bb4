"""Pruning while others read: they find every episode whole, with the dropped arrays or without."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest

from tests.tracekit.store.support import SPARSE, expected
from tracekit.errors import TraceError
from tracekit.store import Trace, dropping, files, prune_store, repair, verify, verifying

DROPPED = ("depth", "reward")


def test_a_trace_opened_before_a_pruning_gives_its_episodes_as_they_are_now(make_trace):
    path = make_trace(4, 3)
    trace = Trace.open(path)
    opened = trace.episode("ep-0")
    prune_store(path, ["depth"])
    episode = trace.episode("ep-1")
    assert "depth" not in episode
    np.testing.assert_array_equal(episode.read("tokens/kept"), expected("tokens/kept", 3, 1))
    np.testing.assert_array_equal(opened.read("tokens/kept"), expected("tokens/kept", 4, 0))
    for step in (None, 1):
        with pytest.raises(TraceError, match=r"t\.zarr: the store was pruned meanwhile, or repaired; open it again$"):
            opened.read("depth", step)
    with pytest.raises(TraceError, match="the store was pruned meanwhile"):
        opened.files_digest()
    prune_store(path, ["reward"])
    assert "reward" not in trace.episode("ep-1")


def test_an_episode_that_a_repair_cut_since_is_not_taken_for_the_one_that_was_opened(make_trace):
    path = make_trace(4)
    trace = Trace.open(path)
    shard = path / "episodes/ep-0/observables/attention/c.0.0.0.0"
    data = bytearray(shard.read_bytes())
    data[2 * 244] ^= 1
    shard.write_bytes(data)
    repair(path)
    (path / "journal/manifests/ep-0@1.json").unlink(missing_ok=True)
    with pytest.raises(TraceError, match="the store was pruned meanwhile, or repaired; open it again"):
        trace.episode("ep-0")
    assert Trace.open(path).episode("ep-0").info.steps == 2


def test_what_is_damaged_is_not_called_pruned(make_trace):
    path = make_trace(4)
    episode = Trace.open(path).episode("ep-0")
    (path / "episodes/ep-0/depth/c.0.0.0").unlink()
    with pytest.raises(TraceError, match=r"depth/c\.0\.0\.0 cannot be read .*; run `tracekit verify`"):
        episode.read("depth")


@pytest.mark.parametrize("place", ["load_manifest", "_damage", "damaged_files"])
def test_verify_looks_again_where_a_pruning_came_between(make_trace, monkeypatch, place):
    path = make_trace(4, 3, schema=SPARSE)
    whole, pruned = getattr(verifying, place), []

    def after_a_pruning(*arguments):
        if not pruned and arguments[1] != path:  # not at the root's own files, before any episode
            pruned.append(prune_store(path, ["depth"]))
        return whole(*arguments)

    monkeypatch.setattr(verifying, place, after_a_pruning)
    report = verify(path)
    assert pruned
    assert report.clean
    assert report.problems == ()


def test_verify_waits_for_the_pruning_that_has_committed_and_not_yet_finished(make_trace, monkeypatch):
    path = make_trace(4, 3)
    reports = []

    def sweep_late(*arguments):
        with monkeypatch.context() as patched:
            patched.setattr(verifying.time, "sleep", lambda seconds: finish(*arguments))
            reports.append(verify(path))
        return finish(*arguments)

    finish = dropping.sweep
    monkeypatch.setattr(dropping, "sweep", sweep_late)
    prune_store(path, ["depth"])
    assert len(reports) == 2
    assert all(report.clean for report in reports)


def test_damage_beside_a_writer_is_damage(make_trace, monkeypatch):
    path = make_trace(4)
    monkeypatch.setattr(verifying, "_PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(verifying.lock, "is_held", lambda root: True)
    (path / "episodes/ep-0/depth/c.0.0.0").unlink()
    (path / "episodes/ep-0/zarr.json").write_text("{}")
    assert {problem.path for problem in verify(path).problems} == {
        "episodes/ep-0/depth/c.0.0.0",
        "episodes/ep-0/zarr.json",
    }


def test_a_file_that_goes_while_it_is_looked_at_is_missing(make_trace, monkeypatch):
    path = make_trace(2)
    shard = path / "episodes/ep-0/depth/c.0.0.0"
    summed = verifying.summed

    def gone(file):
        if file == shard:
            files.remove_file(file)
        return summed(file)

    monkeypatch.setattr(verifying, "summed", gone)
    assert [(p.path, p.what) for p in verify(path).problems] == [("episodes/ep-0/depth/c.0.0.0", "is missing")]


def test_readers_and_verify_in_another_process_meet_no_damage_while_arrays_are_pruned(make_trace, tmp_path):
    path = make_trace(*[3] * 12)
    script = textwrap.dedent(f"""
        from pathlib import Path
        from tracekit.errors import TraceError
        from tracekit.store import Trace, verify
        print("ready", flush=True)
        while not Path({str(tmp_path / "stop")!r}).exists():
            report = verify({str(path)!r})
            assert report.clean, report.problems
            trace = Trace.open({str(path)!r})
            for info in trace.episodes:
                episode = trace.episode(info.id)
                for key in episode:
                    try:
                        episode.read(key)
                    except TraceError as error:
                        assert key in {DROPPED} and "was pruned meanwhile" in str(error), error
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reader:
        assert reader.stdout.readline() == b"ready\n"
        for key in DROPPED:
            prune_store(path, [key])
        (tmp_path / "stop").touch()
        said = reader.communicate()[1].decode()
    assert (reader.returncode, said) == (0, "")
    assert verify(path).clean
