"""Stores of every minor version of this major one stay readable, and those that are not newer can be continued.

`data/v1.0.zarr` and `data/v1.1.zarr` were recorded by these versions with `record(writer, "ep-0", 3, 0)` and
`record(writer, "ep-1", 2, 1)` of `support.py` and must never be written again: they stand for the stores that users
have, the former for a store of the previous version. A new minor version adds one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.tracekit.store.support import check_episode, contents, record
from tracekit.store import Trace, TraceWriter, prune_store, repair, verify
from tracekit.store.identity import VERSION
from tracekit.store.sealed import unseal

STORES = sorted((Path(__file__).parent / "data").glob("v*.zarr"))


@pytest.mark.parametrize("store", STORES, ids=lambda path: path.stem)
def test_older_stores_are_read_verified_and_continued(store, tmp_path):
    assert verify(store).clean
    trace = Trace.open(store)
    assert trace.version == store.stem.removeprefix("v")
    assert trace.attributes == {"policy": {"name": "mla"}}
    check_episode(trace, "ep-0", 3, 0)
    check_episode(trace, "ep-1", 2, 1)
    path = tmp_path / "copy"
    shutil.copytree(store, path)
    with TraceWriter.append(path, {}) as writer:
        record(writer, "new", 2, 2)
    check_episode(Trace.open(path), "new", 2, 2)
    for name in ("zarr.json", "episodes/ep-0/zarr.json", "journal/commits.jsonl"):
        whole = (path / name).read_bytes()
        (path / name).write_bytes(whole[:-30] + whole[-20:])
        repair(path)
        assert (path / name).read_bytes() == whole
    assert verify(path).clean


def test_there_is_a_store_of_every_version():
    assert [store.stem for store in STORES] == ["v1.0", "v1.1"]
    assert STORES[-1].stem == f"v{VERSION}"
    assert all(sum(len(data) for data in contents(store).values()) < 60_000 for store in STORES)


def test_a_store_of_the_previous_version_keeps_its_kind_of_checksum_until_its_data_change(tmp_path):
    path = tmp_path / "t"
    shutil.copytree(STORES[0], path)
    shutil.rmtree(path / "journal/manifests")
    repair(path)
    assert contents(path) == contents(STORES[0])
    assert verify(path).clean
    prune_store(path, ["depth"])
    assert verify(path).clean
    assert len(verify(path).notes) == 1  # recorded by format 1.0, as before
    shard = path / "episodes/ep-0/observables/attention/c.0.0.0.0"
    data = bytearray(shard.read_bytes())
    data[2 * 244] ^= 1
    shard.write_bytes(data)
    repair(path)
    assert verify(path).clean
    assert Trace.open(path).version == "1.0"
    assert any(note.startswith("1 episodes were recorded by format 1.0") for note in verify(path).notes)
    assert (Trace.open(path).episodes[0].steps, Trace.open(path).episodes[0].truncated) == (2, True)


def test_what_this_version_writes_has_all_that_the_previous_one_reads():
    """Version 1.0 takes these fields of a manifest and of a journal line, and passes over others."""
    for store in STORES:
        lines = [unseal(line) for line in (store / "journal/commits.jsonl").read_bytes().splitlines(keepends=True)]
        assert all(len(about) == 2 for about in lines[0]["files"].values())
        for line in lines[1:]:
            assert {"name", "size", "crc32c"} <= line["manifest"].keys()
            manifest = unseal((store / "journal/manifests" / line["manifest"]["name"]).read_bytes())
            assert {"info", "arrays", "rows", "chunks", "files", "dropped"} <= manifest.keys()
            assert all(len(about) == 2 for about in manifest["files"].values())
