"""Pruning a store gives space back, in one step per episode, and touches nothing else."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import zarr

from tests.tracekit.store.support import SCHEMA, SPARSE, check_episode, contents, expected, record
from tracekit.errors import TraceError
from tracekit.store import Trace, TraceWriter, dropping, files, prune_store, repair, verify

DROPPED = {"observation/images/front", "depth", "streams/arm/time_ns", "streams/arm/value"}


def test_dropped_arrays_are_gone_and_the_rest_is_as_it_was(make_trace):
    path = make_trace(4, 5, schema=SPARSE)
    before = contents(path)
    size = Trace.open(path).nbytes
    planned = prune_store(path, ["observation/*", "depth", "streams/arm/*"], dry_run=True)
    assert contents(path) == before
    pruned = prune_store(path, ["observation/*", "depth", "streams/arm/*"])
    assert pruned == planned
    assert set(pruned.keys) == DROPPED
    assert pruned.episodes == 2
    assert verify(path).clean
    assert not verify(path).notes
    trace = Trace.open(path)
    lost = sum(len(data) for name, data in before.items() if any(f"/{key}/" in name for key in DROPPED))
    assert pruned.nbytes == lost
    assert trace.nbytes < size - lost + 1000
    for seed, steps in enumerate((4, 5)):
        episode = trace.episode(f"ep-{seed}")
        assert set(episode.keys()) == SCHEMA.keys() - DROPPED - {"never"}
        for key in episode:
            np.testing.assert_array_equal(episode.read(key), expected(key, steps, seed))
    after = contents(path)
    untouched = [name for name in after if "/ep-" in name and not name.endswith(("ep-0/zarr.json", "ep-1/zarr.json"))]
    assert all(after[name] == before[name] for name in untouched if name.startswith("episodes/"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names = {name for name, _ in zarr.open_group(path, mode="r").members(max_depth=None)}
    assert not any("streams" in name or "observation" in name or "depth" in name for name in names)
    with pytest.raises(TraceError, match=r"lacks 'depth' in episode 'ep-0' \(taken away by prune-store"):
        trace.episode("ep-0").read("depth")


def test_a_pruned_store_goes_on(make_trace):
    path = make_trace(2, schema=SPARSE)
    prune_store(path, ["tokens/kept"])
    with TraceWriter.append(path, {}) as writer:
        record(writer, "new", 3, 1, SPARSE)
    assert verify(path).clean
    check_episode(Trace.open(path), "new", 3, 1)
    assert prune_store(path, ["tokens/*"]).episodes == 1
    assert "tokens/kept" not in Trace.open(path).episode("new")


def test_what_every_step_needs_stays_whatever_the_pattern(make_trace):
    path = make_trace(3, 2)
    pruned = prune_store(path, ["*"])
    optional = {key for key, spec in SCHEMA.items() if spec.optional or key.startswith("streams/")} - {"never"}
    assert set(pruned.keys) == optional
    assert set(pruned.kept) == SCHEMA.keys() - optional - {"never"}
    assert verify(path).clean
    episode = Trace.open(path).episode("ep-0")
    assert set(episode.keys()) == set(pruned.kept)
    for key in episode:
        np.testing.assert_array_equal(episode.read(key), expected(key, 3, 0))


def test_what_cannot_be_pruned_is_refused(make_trace):
    path = make_trace(2)
    before = contents(path)
    with pytest.raises(TraceError, match=r"may be dropped matches timing/\*, nope; it has: depth, reward, streams/\*$"):
        prune_store(path, ["timing/*", "nope"])
    with pytest.raises(TraceError, match=r"'hidden/last' belongs to every step of episode 'ep-0'"):
        prune_store(path, ["depth", "hidden/last"])
    with pytest.raises(TraceError, match="its times and values go together; give `streams/arm/\\*`"):
        prune_store(path, ["streams/arm/value"])
    with TraceWriter.append(path, {}), pytest.raises(TraceError, match="another writer"):
        prune_store(path, ["depth"])
    (path / "journal/manifests/ep-0@1.json").write_text("{}")
    with pytest.raises(TraceError, match=r"run `tracekit repair` before pruning"):
        prune_store(path, ["depth"])
    repair(path)
    assert contents(path).items() >= before.items()


@pytest.mark.parametrize("place", [(files, "remove_tree"), (dropping, "sweep")], ids=lambda place: place[1])
def test_an_interrupted_pruning_is_taken_up_again(make_trace, monkeypatch, place):
    path = make_trace(2, 3, schema=SPARSE)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(*place, interrupted)
        with pytest.raises(KeyboardInterrupt):
            prune_store(path, ["hidden/*"])
    trace = Trace.open(path)
    assert ["hidden/last" in trace.episode(name) for name in ("ep-0", "ep-1")] == [False, True]
    assert any("is no part of the episode" in note for note in verify(path).notes)
    prune_store(path, ["hidden/*"])
    assert verify(path).clean
    assert not verify(path).notes
    assert not list(path.glob("episodes/*/hidden"))
