"""A trace from a stranger, whose checksums all hold, cannot make the store touch anything outside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.tracekit.store.support import contents, leave_cut_off, record
from tracekit.errors import TraceError
from tracekit.store import Trace, TraceWriter, dropping, prune_store, repair, verify
from tracekit.store.checksums import Checksum
from tracekit.store.committing import commit_manifest
from tracekit.store.journal import Commits, read_journal
from tracekit.store.sealed import seal, unseal
from tracekit.store.verifying import load_manifest


@pytest.fixture
def precious(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/thesis.jsonl").write_text("years of work")
    yield
    assert (tmp_path / "precious/thesis.jsonl").read_text() == "years of work"


def commit_crafted(path: Path, **changes: object) -> None:
    """Commit the manifest of `ep-0` with `changes`, as the only one of the episode."""
    journal = read_journal(path)
    manifest = load_manifest(path, journal.episodes()["ep-0"])
    crafted = replace(manifest, **changes)
    if "dropped" in changes:
        crafted = crafted.with_documents()
        for name, data in crafted.documents().items():
            (path / "episodes/ep-0" / name).write_bytes(data)
    commits = Commits(path, journal)
    commit_manifest(path, commits, crafted)
    commits.close()
    (path / "journal/manifests/ep-0@1.json").unlink()


@pytest.mark.usefixtures("precious")
@pytest.mark.parametrize(
    "changes",
    [
        {"dropped": ("../../../precious",)},
        {"dropped": ("depth/../../../../precious",)},
        {"dropped": ("/no/such/place",)},
        {"dropped": (1,)},
        {"rows": {"../x": 2}},
        {"chunks": {"../x": [2]}},
        {"files": {"../../../precious/thesis.jsonl": Checksum(13, 0, "0")}},
        {"files": {"/no/such/zarr.json": Checksum(13, 0, "0")}},
    ],
    ids=str,
)
def test_a_manifest_that_names_places_outside_its_episode_is_damaged(make_trace, monkeypatch, changes):
    path = make_trace(2)
    monkeypatch.setattr(dropping.files, "remove_tree", lambda folder: pytest.fail(f"would remove {folder}"))
    commit_crafted(path, **changes)
    assert [(p.path, p.what) for p in verify(path).problems] == [
        ("journal/manifests/ep-0@2.json", "is damaged or missing")
    ]
    with pytest.raises(TraceError, match=r"ep-0@2\.json is damaged; run `tracekit verify`"):
        Trace.open(path).episode("ep-0")
    with pytest.raises(TraceError, match="run `tracekit repair` before pruning"):
        prune_store(path, ["depth"])
    repair(path)
    assert verify(path).clean


@pytest.mark.usefixtures("precious")
@pytest.mark.parametrize(
    "changes",
    [
        {"info": {"id": "../../precious"}},
        {"info": {"id": "../../../precious/thesis"}},
        {"info": {"id": "/no/such/place"}},
        {"manifest": {"name": "../../../precious/thesis.jsonl"}},
        {"manifest": {}},
        {"seq": "1"},
    ],
    ids=str,
)
def test_a_journal_line_that_names_places_outside_the_store_is_damaged(make_trace, changes):
    path = make_trace(2, 3)
    journal = path / "journal/commits.jsonl"
    head, line, last = journal.read_bytes().splitlines(keepends=True)
    said = unseal(line)
    about = {**said["manifest"], **changes.get("manifest", {})} if changes.get("manifest", 1) else {}
    crafted = {**said, **changes, "info": {**said["info"], **changes.get("info", {})}, "manifest": about}
    journal.write_bytes(head + seal(crafted) + last)
    assert any(p.what == "is damaged or missing in line 2" for p in verify(path).problems)
    with pytest.raises(TraceError, match="line 2 of the journal is damaged"):
        Trace.open(path)
    repair(path)
    assert verify(path).clean
    assert [info.id for info in Trace.open(path).episodes] == ["ep-0", "ep-1"]


@pytest.mark.usefixtures("precious")
def test_a_link_out_of_the_store_is_not_followed_by_pruning(make_trace, tmp_path):
    path = make_trace(2)
    with TraceWriter.append(path, {}) as writer:
        record(writer, "new", 2, 1)
    commit_crafted(path, dropped=("precious",))
    (path / "episodes/ep-0").rename(tmp_path / "ep-0")
    (tmp_path / "precious").rename(tmp_path / "ep-0/precious")
    (path / "episodes/ep-0").symlink_to(tmp_path / "ep-0")
    prune_store(path, ["depth"])
    (tmp_path / "ep-0/precious").rename(tmp_path / "precious")
    assert contents(tmp_path / "ep-0").keys() >= {"depth/zarr.json"}


@pytest.mark.usefixtures("precious")
@pytest.mark.parametrize("change", [{"info": {"id": "../../../precious/e"}}, {"info": {}}, {"schema": [["../x", {}]]}])
def test_a_step_log_that_says_what_no_writer_does_is_set_aside(make_trace, tmp_path, change):
    path = make_trace(2)
    leave_cut_off(path, "cut", 3, 1)
    log = path / "journal/running/cut.jsonl"
    header, *steps = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(seal({**unseal(header), **change}) + b"".join(steps))
    repair(path)
    assert verify(path).clean
    assert [info.id for info in Trace.open(path).episodes] == ["ep-0"]
    assert sorted(tmp_path.rglob("thesis.jsonl")) == sorted((tmp_path / "precious").iterdir())
