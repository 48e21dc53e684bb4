"""After a power cut at any moment, with unsynced work dropped, torn or reordered, every committed episode is whole."""

from __future__ import annotations

import random
import shutil

import numpy as np
import pytest

from tests.tracekit.store.power_loss import Disk
from tests.tracekit.store.support import SCHEMA, check_episode, check_prefix, record, samples_of, step_of
from tracekit.store import ArraySpec, EpisodeInfo, Trace, TraceWriter, episode_writer, repair, verify

STEPS = 5


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A recording of three episodes, flushed every second step, with all its file operations."""
    base = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(base, patch)
        patch.setattr(episode_writer, "_FLUSH_STEPS", 2)
        with TraceWriter.create(base / "t.zarr", {"a": 1}) as writer:
            disk.mark("created")
            for seed in range(3):
                record_flushed(writer, disk, seed)
    return disk


def record_flushed(writer: TraceWriter, disk: Disk, seed: int) -> None:
    with writer.episode(EpisodeInfo(f"ep-{seed}"), SCHEMA) as episode:
        for step in range(STEPS):
            episode.append(step_of(seed, step))
            episode.append_stream("arm", *samples_of(seed, step))
            if step == 3:
                episode.flush()
                disk.mark(("flushed", seed, 4))
        episode.finish(success=True)
    disk.mark(("committed", seed))


@pytest.mark.parametrize(
    ("every", "variants"), [(31, 2), pytest.param(1, 3, marks=pytest.mark.slow)], ids=["some moments", "every sync"]
)
def test_every_committed_episode_survives(recorded, tmp_path, every, variants):
    moments = recorded.moments()
    assert len(moments) > 150
    target = tmp_path / "after"
    whole = 0
    for moment in moments[::every]:
        marks = recorded.marks(moment)
        for variant in range(variants):
            shutil.rmtree(target, ignore_errors=True)
            recorded.crash(moment, target, random.Random(f"{moment} {variant}"))
            whole += check(target / "t.zarr", marks, (moment, variant))
    assert whole > variants * len(moments[::every]) // 2


def check(path, marks, where) -> bool:
    committed = {mark[1] for mark in marks if mark[0] == "committed"}
    flushed = {mark[1]: mark[2] for mark in marks if mark[0] == "flushed"}
    if "created" not in marks and not path.exists():
        return False
    trace = Trace.open(path)
    assert trace.attributes == {"a": 1}
    for info in trace.episodes:  # visible means whole
        check_episode(trace, info.id, STEPS, int(info.id[3:]))
    assert {f"ep-{seed}" for seed in committed} <= {info.id for info in trace.episodes}, where
    assert not {problem.episode for problem in verify(path).problems} & {f"ep-{seed}" for seed in committed}, where
    repair(path)
    assert verify(path).clean, where
    trace = Trace.open(path)
    found = {info.id: info for info in trace.episodes}
    for name, info in found.items():
        samples = len(trace.episode(name).read("streams/arm/value"))
        check_prefix(trace, name, info.steps, int(name[3:]), samples)
    for seed in committed:
        assert (found[f"ep-{seed}"].steps, found[f"ep-{seed}"].truncated) == (STEPS, False), where
    for seed, steps in flushed.items():
        assert found[f"ep-{seed}"].steps >= steps, where
    return bool(committed)


def test_the_disk_itself_forgets_what_was_not_synced(tmp_path):
    """The simulation must be able to fail: without one fsync, episodes are lost or damaged somewhere."""
    base = tmp_path / "base"
    base.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(base, patch)
        schema = {"x": ArraySpec("float64", (100,), ("i",))}
        with TraceWriter.create(base / "t", {}) as writer, writer.episode(EpisodeInfo("e"), schema) as episode:
            episode.append({"x": np.arange(100.0)})
            episode.finish()
            disk.mark("done")
        kept = [entry for entry in disk.log if entry[0] != "sync"]
    disk.log = kept
    worst = 0
    for variant in range(20):
        target = tmp_path / f"after-{variant}"
        disk.crash(len(disk.log), target, random.Random(variant))
        report = verify(target / "t") if (target / "t/journal/manifests").is_dir() else None
        worst += report is None or not report.clean
    assert worst > 10
    with TraceWriter.create(tmp_path / "other", {}) as writer:
        record(writer, "e", 1)
