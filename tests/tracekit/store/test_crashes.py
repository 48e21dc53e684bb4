"""A killed writer, a full disk, a lost power supply: what was committed stays, and `repair` keeps the rest."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.tracekit.store import killed_writer
from tests.tracekit.store.killing import Killer
from tests.tracekit.store.support import SCHEMA, check_episode, check_prefix, record, samples_of, step_of
from tracekit.errors import TraceError
from tracekit.store import (
    ArraySpec,
    EpisodeInfo,
    EpisodeWriter,
    Trace,
    TraceWriter,
    episode_writer,
    files,
    repair,
    verify,
)
from tracekit.store.shards import ShardWriter

STEPS = 9

RECORDER = textwrap.dedent("""
    import os, sys
    from pathlib import Path
    from tests.tracekit.store.support import SCHEMA, samples_of, step_of
    from tracekit.store import EpisodeInfo, TraceWriter

    path, progress = Path(sys.argv[1]), sys.argv[2]
    done = os.open(progress, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    writer = TraceWriter.append(path, {})
    os.write(done, b"started\\n")
    for seed in range(1, 10_000):
        with writer.episode(EpisodeInfo(f"ep-{seed}"), SCHEMA) as episode:
            for step in range(9):
                episode.append(step_of(seed, step))
                episode.append_stream("arm", *samples_of(seed, step))
                os.write(done, f"step {seed}\\n".encode())
            episode.finish(success=True)
        os.write(done, f"committed {seed}\\n".encode())
""")


def start_recorder(path: Path) -> tuple[subprocess.Popen[str], Path]:
    progress = path.with_suffix(".progress")
    progress.unlink(missing_ok=True)
    command = [sys.executable, "-c", RECORDER, str(path), str(progress)]
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.Popen(command, env=environment, cwd=root, stdout=subprocess.PIPE, text=True), progress


def check_after_kill(path: Path, said: list[str], steps_of: Callable[[int], int]) -> None:
    """Committed episodes are whole at once; the running one is, after repair, up to the step that was being written."""
    committed = [int(line.split()[1]) for line in said if line.startswith("committed")]
    trace = Trace.open(path)
    check_episode(trace, "ep-0", 2, 0)
    for seed in committed:
        check_episode(trace, f"ep-{seed}", steps_of(seed), seed)
    assert len(trace.episodes) - 1 - len(committed) in {0, 1}  # killed between the commit and saying so
    running = len(committed) + 1
    steps = said.count(f"step {running}")
    repair(path)
    assert verify(path).clean
    trace = Trace.open(path)
    found = {info.id: info for info in trace.episodes}
    for seed in committed:
        check_episode(trace, f"ep-{seed}", steps_of(seed), seed)
        assert not found[f"ep-{seed}"].truncated
    if f"ep-{running}" in found:
        kept = found[f"ep-{running}"].steps
        assert steps <= kept <= steps + 1
        samples = len(trace.episode(f"ep-{running}").read("streams/arm/value"))
        assert 3 * steps <= samples <= 3 * steps + 3
        check_prefix(trace, f"ep-{running}", kept, running, samples)
    else:
        assert steps == 0
    with TraceWriter.append(path, {}) as writer:
        record(writer, "after", 2, 77)
    check_episode(Trace.open(path), "after", 2, 77)


@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_any_moment(make_trace, tmp_path, kills):
    path = make_trace(2)
    draw = random.Random(3)
    for number in range(kills):
        copy = tmp_path / f"copy-{number}"
        shutil.copytree(path, copy)
        process, progress = start_recorder(copy)
        while not (progress.exists() and progress.read_text()):
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 1.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        check_after_kill(copy, progress.read_text().split("\n"), lambda seed: STEPS)


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 71])
def test_killed_inside_every_file_operation(make_trace, tmp_path, every):
    """Writes stop half way, and fsync, rename and folder operations do not happen: in steps, in commits, in between."""
    path = make_trace(2)
    copy = tmp_path / "copy"
    with Killer("tests.tracekit.store.killed_writer") as killer:
        shutil.copytree(path, copy)
        operations = killer.operations(copy)
        kinds = Counter(operation.split()[0] for operation in operations)
        assert kinds["sync"] > 60
        assert kinds["rename"] == 4  # of two episodes, the manifest and the move
        assert sum(operation == "write commits.jsonl" for operation in operations) == 2
        assert (
            sum(operation.startswith("write ep-2.jsonl") for operation in operations) == 1 + 2 * killed_writer.STEPS[2]
        )
        for kill_at in range(1, len(operations) + 1, every):
            shutil.rmtree(copy)
            shutil.copytree(path, copy)
            said = killer.kill(copy, kill_at)
            check_after_kill(copy, said, killed_writer.STEPS.__getitem__)
    print(f"{len(range(1, len(operations) + 1, every))} kills, at {dict(kinds)}")


def record_until(path: Path, stop: int, operations: tuple[str, ...], monkeypatch, failure: BaseException) -> bool:
    """Record two episodes, with `failure` raised by file operation number `stop`; whether it all went through."""
    count = 0

    def counted(operation):
        def run(*arguments):
            nonlocal count
            count += 1
            if count > stop:
                raise failure
            return operation(*arguments)

        return run

    with monkeypatch.context() as patched:
        for name in operations:
            patched.setattr(files, name, counted(getattr(files, name)))
        try:
            with TraceWriter.append(path, {}) as writer:
                for seed in (1, 2):
                    record(writer, f"ep-{seed}", 3, seed)
        except TraceError:
            return False
    return True


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 61])
def test_a_full_disk_at_any_write_loses_nothing(make_trace, tmp_path, monkeypatch, every):
    """Every operation that needs space fails from some point on; what was recorded until then is kept."""
    path = make_trace(2)
    for stop in range(0, 2000, every):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(path, copy)
        failure = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finished = record_until(copy, stop, ("write", "create", "make_folder", "sync"), monkeypatch, failure)
        committed = {info.id for info in Trace.open(copy).episodes}
        assert "ep-0" in committed
        for name in committed - {"ep-0"}:
            check_episode(Trace.open(copy), name, 3, int(name[3:]))
        repair(copy)
        assert verify(copy).clean
        trace = Trace.open(copy)
        assert committed <= {info.id for info in trace.episodes}
        for info in trace.episodes[1:]:
            samples = len(trace.episode(info.id).read("streams/arm/value"))
            check_prefix(trace, info.id, info.steps, int(info.id[3:]), samples)
        if finished:
            break
    assert finished


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_of_two_megabytes(small_disk):
    path = small_disk / "t.zarr"
    schema = {"bulk": ArraySpec("float32", (5000,), ("x",)), "mark": ArraySpec("int64")}
    with TraceWriter.create(path, {}) as writer:
        record(writer, "ep-0", 20, 0)
        with pytest.raises(TraceError, match="No space left on device; what came before is kept"):
            fill(writer.episode(EpisodeInfo("long"), schema))
        with pytest.raises(TraceError, match="No space left on device"):
            writer.episode(EpisodeInfo("no"), schema).finish()
    trace = Trace.open(path)
    assert [info.id for info in trace.episodes] == ["ep-0"]
    check_episode(trace, "ep-0", 20, 0)
    assert [problem.episode for problem in verify(path).problems] == ["long"]
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    repair(path)
    assert verify(path).clean
    long = Trace.open(path).episode("long")
    assert 80 < long.info.steps <= 100
    np.testing.assert_array_equal(long.read("mark"), np.arange(long.info.steps))
    assert (long.read("bulk") == np.arange(long.info.steps)[:, None]).all()


def fill(episode: EpisodeWriter) -> None:
    with episode:
        for step in range(10**6):
            episode.append({"bulk": np.full(5000, step, np.float32), "mark": step})


def record_for_ever(writer: TraceWriter) -> None:
    with writer.episode(EpisodeInfo("long"), SCHEMA) as episode:
        for step in range(10**6):
            episode.append(step_of(1, step))
            episode.append_stream("arm", *samples_of(1, step))


def test_a_limit_on_file_size_in_another_process(make_trace, tmp_path):
    """The kernel itself cuts a write short: the writer reports it, and repair keeps what is whole."""
    path = make_trace(2)
    script = textwrap.dedent(f"""
        import resource, signal
        from tests.tracekit.store.test_crashes import record_for_ever
        from tracekit.store import TraceWriter
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with TraceWriter.append({str(path)!r}, {{}}) as writer:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
            record_for_ever(writer)
    """)
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(root)},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "File too large; what came before is kept" in done.stderr
    check_episode(Trace.open(path), "ep-0", 2, 0)
    repair(path)
    assert verify(path).clean
    steps = Trace.open(path).episodes[1].steps
    samples = len(Trace.open(path).episode("long").read("streams/arm/value"))
    assert steps > 20
    check_prefix(Trace.open(path), "long", steps, 1, samples)


@pytest.mark.parametrize("clock", [[0.0, -5.0, -5.0, -9.0], [0.0, 0.1, 0.2], [10.0, 0.0, 20.0]])
def test_flushing_does_not_depend_on_a_clock_that_behaves(tmp_path, monkeypatch, clock):
    synced = []
    ticks = iter(clock * 50)
    monkeypatch.setattr(episode_writer.time, "monotonic", ticks.__next__)
    monkeypatch.setattr(ShardWriter, "sync", lambda self: synced.append(self.path.name))
    with TraceWriter.create(tmp_path / "t", {}) as writer, writer.episode(EpisodeInfo("e"), SCHEMA) as episode:
        for step in range(16):
            episode.append(step_of(0, step))
        assert synced.count("c.0.0.0.0") >= 2  # image and attention, at the latest after 16 steps
        monkeypatch.undo()


def test_a_second_of_recording_is_flushed_whatever_the_number_of_steps(tmp_path, monkeypatch):
    now = 100.0
    synced = []
    monkeypatch.setattr(episode_writer.time, "monotonic", lambda: now)
    monkeypatch.setattr(ShardWriter, "sync", lambda self: synced.append(self.path))
    with TraceWriter.create(tmp_path / "t", {}) as writer, writer.episode(EpisodeInfo("e"), SCHEMA) as episode:
        episode.append(step_of(0, 0))
        assert not synced
        now += 1.01
        episode.append(step_of(0, 1))
        assert synced
        synced.clear()
        episode.append(step_of(0, 2))
        assert not synced
        episode.flush()
        assert synced
        monkeypatch.undo()
