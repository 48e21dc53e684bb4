"""Stores of every minor version of this major one stay readable, and those that are not newer can be continued.

`data/v1.0.zarr` was recorded by version 1.0 with `record(writer, "ep-0", 3, 0)` and `record(writer, "ep-1", 2, 1)` of
`support.py` and must never be written again: it stands for the stores that users have. A new minor version adds one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.tracekit.store.support import check_episode, contents, record
from tracekit.store import Trace, TraceWriter, repair, verify

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


def test_there_is_a_store_of_this_version():
    assert "v1.0" in {store.stem for store in STORES}
    assert sum(len(data) for data in contents(STORES[0]).values()) < 60_000
