"""A writer belongs to one process and one life: what is closed, or inherited by a forked child, writes nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import pytest

from tests.tracekit.store.support import SCHEMA, check_episode, contents, record, samples_of, step_of
from tracekit.errors import TraceError
from tracekit.store import EpisodeInfo, Trace, TraceWriter, repair, verify


def open_files(path: Path) -> list[int]:
    """Descriptors of this process that lead into `path`."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the listing itself
            found += [int(link.name)] if path in link.readlink().parents else []
    return found


def test_a_closed_writer_keeps_no_file_and_its_open_episode_takes_no_more(make_trace, tmp_path):
    path = make_trace(2)
    writer = TraceWriter.append(path, {})
    record(writer, "before", 1, 4)
    episode = writer.episode(EpisodeInfo("open"), SCHEMA)
    for step in range(3):
        episode.append(step_of(1, step))
        episode.append_stream("arm", *samples_of(1, step))
    assert len(open_files(path)) > 5
    writer.close()
    assert not open_files(path)
    other = tmp_path / "other"
    taken = [os.open(other, os.O_RDWR | os.O_CREAT) for _ in range(40)]  # the numbers are used again
    try:
        for attempt in (lambda: episode.append(step_of(1, 3)), episode.flush, episode.finish):
            with pytest.raises(TraceError, match="episode 'open' is cut off"):
                attempt()
        with pytest.raises(TraceError, match="this writer is closed; make a new one"):
            writer.episode(EpisodeInfo("late"), SCHEMA)
        writer.close()
        episode.__exit__(KeyError, KeyError(), None)
        assert other.stat().st_size == 0
    finally:
        for descriptor in taken:
            os.close(descriptor)  # none of them was closed behind our back
    assert [info.id for info in Trace.open(path).episodes] == ["ep-0", "before"]
    repair(path)
    assert verify(path).clean
    check_episode(Trace.open(path), "open", 3, 1)


def test_leaving_the_block_of_the_writer_first_loses_nothing(make_trace):
    path = make_trace(1)
    with TraceWriter.append(path, {}) as writer:
        episode = writer.episode(EpisodeInfo("open"), SCHEMA)
        episode.append(step_of(1, 0))
    with episode:
        pass
    assert [problem.episode for problem in verify(path).problems] == ["open"]


def in_child(action) -> str:
    """What `action`, run in a forked child, raised; empty if nothing."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said = b""
        try:
            action()
        except BaseException as error:  # noqa: BLE001  (told to the parent)
            said = str(error).encode()
        os.write(writing, said)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        said = file.read().decode()
    os.waitpid(child, 0)
    return said


def test_a_forked_child_can_neither_write_nor_end_what_its_parent_records(make_trace):
    path = make_trace(2)
    with TraceWriter.append(path, {}) as writer, writer.episode(EpisodeInfo("run"), SCHEMA) as episode:
        episode.append(step_of(1, 0))
        episode.append_stream("arm", *samples_of(1, 0))
        before = contents(path)
        for attempt in (lambda: episode.append(step_of(1, 1)), episode.finish, episode.flush):
            assert "'run' is written by process" in in_child(attempt)
        assert "this writer belongs to process" in in_child(lambda: writer.episode(EpisodeInfo("x"), SCHEMA))
        assert "another writer" in in_child(lambda: TraceWriter.append(path, {}))
        assert in_child(lambda: episode.__exit__(KeyError, KeyError(), None)) == ""
        assert in_child(writer.close) == ""
        assert contents(path) == before
        assert verify(path).notes == ("episode 'run' is being written",)
        episode.append(step_of(1, 1))
        episode.append_stream("arm", *samples_of(1, 1))
        episode.finish()
    check_episode(Trace.open(path), "run", 2, 1)


def test_a_forked_child_does_not_keep_the_store_locked(make_trace):
    path = make_trace(1)
    script = textwrap.dedent(f"""
        import os, sys, time
        from tracekit.store import TraceWriter
        writer = TraceWriter.append({str(path)!r}, {{}})
        child = os.fork()
        if child == 0:
            os.close(1)
            time.sleep(60)
            os._exit(0)
        print(child, flush=True)
        os.kill(os.getpid(), 9)
    """)
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == -9
    child = int(done.stdout)
    try:
        os.kill(child, 0)  # it lives
        with TraceWriter.append(path, {}) as writer:
            record(writer, "next", 2)
    finally:
        os.kill(child, 9)
    check_episode(Trace.open(path), "next", 2, 0)
