"""What cannot be stored or read is refused in one line that says what, where and what to do, and changes nothing."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import textwrap
import threading
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import zarr

from tests.tracekit.store.support import SCHEMA, check_episode, contents, record, samples_of, step_of
from tracekit.errors import TraceError, TracekitError
from tracekit.store import ArraySpec, EpisodeInfo, EpisodeWriter, Trace, TraceWriter, repair, verify
from tracekit.store.checksums import checksum_of
from tracekit.store.sealed import seal, unseal
from tracekit.store.shards import ShardWriter


def rewrite_head(path: Path, **changes: object) -> None:
    """Give a store another format or version, with its journal whole."""
    journal = path / "journal/commits.jsonl"
    first, *rest = journal.read_bytes().splitlines(keepends=True)
    head = unseal(first)
    journal.write_bytes(seal({**head, **changes}) + b"".join(rest))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda p: None, "there is no such path"),
        (lambda p: p.write_text("x"), "it is a file"),
        (lambda p: p.mkdir(), "it is an empty folder"),
        (lambda p: (p.mkdir(), [(p / n).write_text("") for n in "abcd"]), "it is a folder with a, b, c and more"),
        (lambda p: zarr.create_group(p, attributes={"format": "other"}), r"it is a zarr store .*\(format other\)"),
        (lambda p: zarr.create_group(p, zarr_format=2), "it is a zarr version 2 store"),
    ],
)
def test_opening_what_is_no_trace_says_what_it_is(tmp_path, make, what):
    path = tmp_path / "p"
    make(path)
    for attempt in (lambda: Trace.open(path), lambda: TraceWriter.append(path, {})):
        with pytest.raises(TraceError, match=what) as refused:
            attempt()
        assert "\n" not in str(refused.value)
        assert str(path) in str(refused.value)


def test_a_newer_minor_version_is_readable_but_not_continued(make_trace):
    path = make_trace(3)
    rewrite_head(path, version="1.10", novelty={"a": 1})
    manifest = path / "journal/manifests/ep-0@1.json"
    said = unseal(manifest.read_bytes())
    arrays = [[key, {**spec, "novelty": 1}] for key, spec in said["arrays"]]
    manifest.write_bytes(seal({**said, "info": {**said["info"], "novelty": 2}, "arrays": arrays, "novelty": [3]}))
    journal = path / "journal/commits.jsonl"
    head, line = journal.read_bytes().splitlines(keepends=True)
    record_of_it = unseal(line)
    found = checksum_of(manifest.read_bytes())
    about = {**record_of_it["manifest"], "size": found.nbytes, "crc32c": found.crc32c, "sha256": found.sha256}
    later = seal({"kind": "a kind of a later version", "seq": 2})
    journal.write_bytes(head + seal({**record_of_it, "manifest": about, "novelty": 4}) + later)
    check_episode(Trace.open(path), "ep-0", 3, 0)
    assert verify(path).clean
    with pytest.raises(TraceError, match=r"format version 1\.10, this tracekit writes 1\.1; update it to go on"):
        TraceWriter.append(path, {})
    with pytest.raises(TraceError, match=r"this tracekit writes 1\.1; update it to go on"):
        repair(path)


def test_an_unknown_major_version_is_refused(make_trace):
    path = make_trace(3)
    rewrite_head(path, version="2.0")
    with pytest.raises(TraceError, match=r"format version 2\.0, this tracekit reads 1\.x; update it$"):
        Trace.open(path)


def test_an_unknown_major_version_with_another_layout_is_refused(tmp_path):
    zarr.create_group(tmp_path / "t", attributes={"format": "tracekit.trace", "version": "3.2"})
    with pytest.raises(TraceError, match=r"format version 3\.2, this tracekit reads 1\.x; update it$"):
        Trace.open(tmp_path / "t")


def test_creating_over_something_is_refused_and_harms_nothing(make_trace, tmp_path):
    path = make_trace(2)
    before = contents(path)
    for taken in (path, tmp_path):
        with pytest.raises(TraceError, match="exists already"):
            TraceWriter.create(taken, {})
    assert contents(path) == before


def test_creating_with_attributes_that_are_no_json_leaves_nothing(tmp_path):
    for bad in ({"a": float("nan")}, {"a": object()}, {1: 2}):
        with pytest.raises(TracekitError, match="not expressible as JSON"):
            TraceWriter.create(tmp_path / "t", bad)
    with pytest.raises(TraceError, match="may not be called version"):
        TraceWriter.create(tmp_path / "t", {"version": 3})
    (tmp_path / "file").write_text("")
    with pytest.raises(TraceError, match="cannot create a trace there: File exists"):
        TraceWriter.create(tmp_path / "file" / "t", {})
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_continuing_with_other_settings_names_the_first_that_differs(make_trace):
    path = make_trace(1)
    same = {"policy": {"name": "mla", "widths": [1, 2]}, "more": 1}
    TraceWriter.append(path, same, match=["policy.name", "policy.widths", "capture"]).close()
    with pytest.raises(TraceError, match=r"policy\.widths is \[1,2\] in the trace but \[1,3\] now"):
        TraceWriter.append(path, {"policy": {"name": "mla", "widths": [1, 3]}}, match=["policy.name", "policy.widths"])
    with pytest.raises(TraceError, match=r'capture is null in the trace but "all" now'):
        TraceWriter.append(path, {"capture": "all"}, match=["capture", "policy"])


def test_an_episode_id_that_is_there_is_refused_before_anything_is_written(make_trace):
    path = make_trace(2)
    before = contents(path)
    with TraceWriter.append(path, {}) as writer:
        with pytest.raises(TraceError, match="episode 'ep-0' is there already"):
            writer.episode(EpisodeInfo("ep-0"), SCHEMA)
        record(writer, "new", 1)
        with pytest.raises(TraceError, match="episode 'new' is there already"):
            writer.episode(EpisodeInfo("new"), SCHEMA)
    after = contents(path)
    assert before.items() - {("journal/commits.jsonl", before["journal/commits.jsonl"])} <= after.items()


@pytest.mark.parametrize("name", ["", "a/b", "..", ".", "a b", "ü", "__x", "zarr.json", "x" * 201, "a\n"])
def test_names_that_are_no_plain_folder_names(tmp_path, name):
    with TraceWriter.create(tmp_path / "t", {}) as writer:
        with pytest.raises(TraceError, match="cannot be a name in a trace"):
            writer.episode(EpisodeInfo(name), {})
        with pytest.raises(TraceError, match="cannot be a name in a trace"):
            writer.episode(EpisodeInfo("e"), {f"{name}//a": ArraySpec("bool")})


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"a": ArraySpec("bool"), "a/b": ArraySpec("bool")}, "'a' is an array and also the folder"),
        ({"scalars/x": ArraySpec("bool")}, "where the store keeps its tables"),
        ({"streams/a/time_ns": ArraySpec("int64")}, "stream 'a' lacks 'value'"),
        ({"streams/a/value": ArraySpec("int64")}, "stream 'a' lacks 'time_ns'"),
        ({"streams/a/other": ArraySpec("int64")}, "a stream is exactly"),
        (
            {"streams/a/time_ns": ArraySpec("int32"), "streams/a/value": ArraySpec("int8")},
            "time stamps are int64 scalars",
        ),
        ({"streams/a/time_ns": ArraySpec("int64"), "streams/a/value": ArraySpec("int8", codec="zstd")}, "stored raw"),
    ],
)
def test_schemas_that_cannot_be_stored(tmp_path, schema, message):
    with TraceWriter.create(tmp_path / "t", {}) as writer:
        with pytest.raises(TraceError, match=message):
            writer.episode(EpisodeInfo("e"), schema)
        with writer.episode(EpisodeInfo("e"), {}) as episode:
            episode.append({})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "complex64"}, "'complex64' cannot be stored; use one of: bfloat16, bool"),
        ({"dtype": "int8", "shape": (2,)}, "name every axis"),
        ({"dtype": "int8", "codec": "lz77"}, "codec 'lz77' is unknown"),
        ({"dtype": "int8", "attributes": {"unit": "m"}}, "may not be called unit"),
        ({"dtype": "float64", "shape": (2**20, 2**9), "axes": ("a", "b")}, "above 2 GB"),
        ({"dtype": "int8", "shape": (-1,), "axes": ("a",)}, "negative"),
    ],
)
def test_array_specifications_that_make_no_sense(fields, message):
    with pytest.raises(TraceError, match=message):
        ArraySpec(**fields)


def test_a_step_that_does_not_fit_is_refused_whole(tmp_path):
    path = tmp_path / "t"
    with TraceWriter.create(path, {}) as writer, writer.episode(EpisodeInfo("e"), SCHEMA) as episode:
        good = step_of(0, 0)
        for change, message in [
            ({"unknown": 1}, "'unknown' is not in the schema"),
            ({"timing/wall": None}, "lacks 'timing/wall'"),
            ({"streams/arm/value": np.zeros(2)}, "add it with append_stream"),
            ({"observables/attention": np.zeros((3, 4, 5))}, "is float64 of shape"),
            ({"observables/attention": np.zeros((3, 4, 6), np.float32)}, r"of shape \(3, 4, 6\), the schema says"),
            ({"timing/wall": 2**63}, "9223372036854775808 of shape"),
            ({"timing/wall": 1.5}, r"1\.5 of shape"),
            ({"timing/load": True}, "True of shape"),
            ({"timing/heat": np.float32(1)}, "is float32 of shape"),
            ({"hidden/last": np.zeros(4, np.float16)}, "the schema says bfloat16"),
        ]:
            step = {key: value for key, value in {**good, **change}.items() if value is not None}
            with pytest.raises(TraceError, match=message):
                episode.append(step)
        assert episode.steps == 0
        for step in range(3):
            episode.append(step_of(0, step))
            episode.append_stream("arm", *samples_of(0, step))
    check_episode(Trace.open(path), "e", 3, 0)


def test_missing_keys_are_named_with_what_is_there(make_trace):
    trace = Trace.open(make_trace(3))
    with pytest.raises(TraceError, match="no episode 'ep-7'; it has 1, such as ep-0"):
        trace.episode("ep-7")
    episode = trace.episode("ep-0")
    for attempt in (episode.read, episode.spec, episode.present):
        with pytest.raises(
            TraceError, match=r"lacks 'observables/atention' in episode 'ep-0' .did you mean 'observables/attention'"
        ) as e:
            attempt("observables/atention")
        assert (
            "it has the parts depth, hidden, nothing, observables, observation, reward, streams, timing, tokens"
            in str(e.value)
        )
    for step in (3, -1):
        with pytest.raises(TraceError, match=f"has 3 steps, there is no step {step}"):
            episode.read("timing/wall", step)


def fail_after_a_step(episode: EpisodeWriter) -> None:
    episode.append(step_of(0, 0))
    raise ZeroDivisionError


def test_an_exception_in_the_loop_discards_the_running_episode_only(make_trace):
    path = make_trace(2)
    before = contents(path)
    with TraceWriter.append(path, {}) as writer:
        episode = writer.episode(EpisodeInfo("bad"), SCHEMA)
        with pytest.raises(ZeroDivisionError), episode:
            fail_after_a_step(episode)
        assert contents(path) == before
        with pytest.raises(TraceError, match="episode 'bad' is discarded"):
            episode.append(step_of(0, 0))
        record(writer, "bad", 2, 1)
    check_episode(Trace.open(path), "bad", 2, 1)


def test_ctrl_c_inside_a_step_cannot_commit_half_of_it(make_trace, monkeypatch):
    path = make_trace(2)

    def interrupted(self, row):
        raise KeyboardInterrupt

    def loop(writer):
        episode = stack.enter_context(writer.episode(EpisodeInfo("bad"), SCHEMA))
        episode.append(step_of(0, 0))
        monkeypatch.setattr(ShardWriter, "append", interrupted)
        try:
            episode.append(step_of(0, 1))
        finally:
            with pytest.raises(TraceError, match="episode 'bad' is interrupted"):
                episode.finish()

    with TraceWriter.append(path, {}) as writer, pytest.raises(KeyboardInterrupt), ExitStack() as stack:
        loop(writer)
    assert [info.id for info in Trace.open(path).episodes] == ["ep-0"]
    assert not list((path / "journal/running").iterdir())


def test_a_finished_episode_takes_no_more(tmp_path):
    with TraceWriter.create(tmp_path / "t", {}) as writer, writer.episode(EpisodeInfo("e"), SCHEMA) as episode:
        with pytest.raises(TracekitError, match="not expressible as JSON"):
            episode.finish(attributes={"a": float("inf")})
        episode.append(step_of(0, 0))
        episode.finish(success=True)
        for attempt in (lambda: episode.append(step_of(0, 1)), episode.finish, episode.flush):
            with pytest.raises(TraceError, match="episode 'e' is committed; start a new episode"):
                attempt()
    assert Trace.open(tmp_path / "t").episodes[0].steps == 1


def test_readers_see_committed_episodes_only(make_trace):
    path = make_trace(2)
    with TraceWriter.append(path, {}) as writer, writer.episode(EpisodeInfo("running"), SCHEMA) as episode:
        episode.append(step_of(0, 0))
        episode.flush()
        assert [info.id for info in Trace.open(path).episodes] == ["ep-0"]
        assert "running" not in zarr.open_group(path / "episodes", mode="r")
        episode.finish()
        assert [info.id for info in Trace.open(path).episodes] == ["ep-0", "running"]
        assert "running" in zarr.open_group(path / "episodes", mode="r")


def test_a_second_writer_is_refused_in_this_process_and_in_another(make_trace):
    path = make_trace(1)
    with TraceWriter.append(path, {}):
        with pytest.raises(TraceError, match=rf"another writer \(process {multiprocessing.current_process().pid}\)"):
            TraceWriter.append(path, {})
        script = f"from tracekit.store import TraceWriter\nTraceWriter.append({str(path)!r}, {{}})"
        other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert "TraceError" in other.stderr
        assert "another writer" in other.stderr
        assert [info.id for info in Trace.open(path).episodes] == ["ep-0"]
    TraceWriter.append(path, {}).close()


def test_a_reader_that_keeps_opening_never_sees_half_an_episode(make_trace):
    path = make_trace(2)
    done = threading.Event()

    def write():
        with TraceWriter.append(path, {}) as writer:
            for seed in range(1, 25):
                record(writer, f"ep-{seed}", 2, seed)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = [0]
    while not done.is_set():
        trace = Trace.open(path)
        for info in trace.episodes[seen[-1] :]:
            check_episode(trace, info.id, 2, int(info.id[3:]))
        seen.append(len(trace.episodes))
    writer.join()
    assert seen == sorted(seen)
    assert len(set(seen)) > 3
    assert len(Trace.open(path).episodes) == 25


def test_the_lock_of_a_dead_process_does_not_count(make_trace):
    path = make_trace(1)
    script = textwrap.dedent(f"""
        import os, signal
        from tracekit.store import TraceWriter
        writer = TraceWriter.append({str(path)!r}, {{}})
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -9
    assert (path / "journal/lock").read_bytes()
    with TraceWriter.append(path, {}) as writer:
        record(writer, "next", 2)
    check_episode(Trace.open(path), "next", 2, 0)
