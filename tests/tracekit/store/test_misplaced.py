"""Names that are taken for others, folders that were lost, and files where folders belong."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from tests.tracekit.store.support import SCHEMA, check_episode, contents, leave_cut_off, record
from tracekit.errors import TraceError
from tracekit.store import EpisodeInfo, Trace, TraceWriter, prune_store, repair, verify, writer
from tracekit.store.schema import check_id


def test_an_id_that_looks_like_a_step_log_is_refused(make_trace):
    with (
        TraceWriter.append(make_trace(), {}) as trace,
        pytest.raises(
            TraceError, match=r"'foo\.jsonl' cannot be the id of an episode: step logs end in \.jsonl; leave"
        ),
    ):
        trace.episode(EpisodeInfo("foo.jsonl"), SCHEMA)


def test_an_episode_whose_id_looks_like_a_step_log_is_kept_where_it_was_begun_before(make_trace, monkeypatch):
    path = make_trace(2)
    with TraceWriter.append(path, {}) as trace:
        record(trace, "foo", 3, 1)
    with monkeypatch.context() as patched:
        patched.setattr(writer, "check_new_id", check_id)
        leave_cut_off(path, "foo.jsonl", 4, 9)
    assert [problem.path for problem in verify(path).problems] == ["journal/running/foo.jsonl"]
    assert repair(path).actions == ("episode 'foo.jsonl': was cut off; its first 4 steps are kept, marked truncated",)
    assert verify(path).clean
    check_episode(Trace.open(path), "foo", 3, 1)
    check_episode(Trace.open(path), "foo.jsonl", 4, 9)


def test_a_store_whose_empty_folders_were_lost_goes_on(make_trace):
    path = make_trace()
    for folder in ("manifests", "running"):
        (path / "journal" / folder).rmdir()
    assert verify(path).clean
    with TraceWriter.append(path, {}) as trace:
        record(trace, "new", 3, 1)
    assert verify(path).clean
    check_episode(Trace.open(path), "new", 3, 1)


@pytest.mark.parametrize(
    "place",
    [
        *("journal", "journal/manifests", "journal/running", "journal/set_aside", "episodes"),
        *("episodes/ep-0", "episodes/ep-0/tokens"),
    ],
)
@pytest.mark.parametrize("as_link", [False, True])
def test_a_file_in_the_place_of_a_folder_is_set_aside(make_trace, place, as_link):
    path = make_trace(4, 3)
    if (path / place).exists():
        shutil.rmtree(path / place)
    if as_link:
        (path / place).symlink_to("nowhere")
    else:
        (path / place).write_text("not a folder")
    assert not verify(path).clean
    if place != "episodes":
        flip(path / "episodes/ep-1/tokens/kept/c.0.0")
    repair(path)
    assert verify(path).clean
    aside = path / "journal/set_aside" / place.replace("/", "-")
    assert aside.is_symlink() if as_link else aside.read_text() == "not a folder"
    with TraceWriter.append(path, {}) as trace:
        record(trace, "new", 2, 5)
    check_episode(Trace.open(path), "new", 2, 5)
    if place.startswith("journal"):
        check_episode(Trace.open(path), "ep-0", 4, 0)


def test_a_folder_in_the_place_of_the_lock_is_set_aside(make_trace):
    path = make_trace(2)
    (path / "journal/lock").unlink()
    (path / "journal/lock").mkdir()
    assert [(problem.path, problem.what) for problem in verify(path).problems] == [("journal/lock", "is no file")]
    for attempt in (lambda: TraceWriter.append(path, {}), lambda: prune_store(path, ["depth"])):
        with pytest.raises(TraceError, match=r"journal/lock: .*: Is a directory; .* run `tracekit repair`"):
            attempt()
    assert repair(path).actions == ("journal/lock: was no file; set aside",)
    assert verify(path).clean
    assert prune_store(path, ["depth"]).episodes == 1


def test_a_file_in_the_place_of_a_running_episode_is_set_aside(make_trace):
    path = make_trace(2)
    (path / "journal/running/new").write_text("not a folder")
    assert [problem.path for problem in verify(path).problems] == ["journal/running/new"]
    repair(path)
    assert verify(path).clean
    with TraceWriter.append(path, {}) as trace:
        record(trace, "new", 2, 1)


def test_names_as_long_as_they_may_be_can_be_set_aside(tmp_path):
    path, name = tmp_path / "t", "e" * 200
    with TraceWriter.create(path, {}) as trace:
        record(trace, name, 4)
        record(trace, "f" * 200, 3)
    for damaged in (f"episodes/{name}/observables/attention/c.0.0.0.0", f"episodes/{name}/depth/c.0.0.0"):
        flip(path / damaged, -3)
    flip(path / f"journal/manifests/{'f' * 200}@2.json")
    leave_cut_off(path, "g" * 200, 2, 1)
    flip(path / f"journal/running/{'g' * 200}/tokens/kept/c.0.0", 12)
    repair(path)
    assert verify(path).clean
    assert [(info.id[0], info.steps) for info in Trace.open(path).episodes] == [("e", 4), ("f", 3), ("g", 1)]
    aside = [entry.name for entry in (path / "journal/set_aside").iterdir()]
    assert {entry.removeprefix("episodes-").removeprefix("journal-manifests-")[0] for entry in aside} == set("efg")
    assert max(map(len, aside)) < 240


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "[" * 100_000])
def test_group_attributes_that_are_no_json_do_not_stop_a_repair(make_trace, number):
    path = make_trace(3, 2)
    group = path / "episodes/ep-0/zarr.json"
    group.write_text(group.read_text().replace('"along":"axis"', f'"along":{number}'))
    (path / "journal/manifests/ep-0@1.json").unlink()
    repair(path)
    assert verify(path).clean
    check_episode(Trace.open(path), "ep-1", 2, 1)


def test_root_attributes_that_are_no_json_do_not_stop_a_repair(make_trace):
    path = make_trace(3)
    (path / "zarr.json").write_text((path / "zarr.json").read_text().replace('"mla"', "NaN"))
    shutil.rmtree(path / "journal")
    with pytest.raises(TraceError, match=r"its journal is lost; run `tracekit repair` before pruning$"):
        prune_store(path, ["depth"])
    repair(path)
    assert verify(path).clean
    assert Trace.open(path).attributes == {"policy": {"name": None, "widths": [1, 2]}}
    check_episode(Trace.open(path), "ep-0", 3, 0)


@pytest.mark.parametrize("place", ["journal", "journal/running"])
def test_what_the_disk_refuses_is_said_in_one_line(make_trace, place):
    path = make_trace(2)
    shutil.rmtree(path / place)
    (path / place).write_text("not a folder")
    attempts = {"append": lambda: TraceWriter.append(path, {})}
    if place == "journal":
        attempts["prune"] = lambda: prune_store(path, ["depth"])
    for attempt in attempts.values():
        with pytest.raises(TraceError, match=r"run `tracekit repair`") as refused:
            attempt()
        assert "\n" not in str(refused.value)


def test_an_unreadable_store_is_refused_by_every_verb(make_trace, monkeypatch):
    path = make_trace(2)

    def refused(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refused)
    for attempt in (
        lambda: TraceWriter.append(path, {}),
        lambda: prune_store(path, ["depth"]),
        lambda: verify(path),
        lambda: repair(path),
        lambda: Trace.open(path),
    ):
        with pytest.raises(TraceError, match="Permission denied"):
            attempt()


def test_a_dry_run_changes_nothing(make_trace):
    path = make_trace(2, 3)
    (path / "episodes/ep-1").rename(path / "journal/running/ep-1")
    before = contents(path)
    assert prune_store(path, ["depth"], dry_run=True).episodes == 2
    assert contents(path) == before


def flip(path: Path, offset: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
