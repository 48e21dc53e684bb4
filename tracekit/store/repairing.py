"""Making a damaged or cut-off store whole again, without deleting anything that was recorded.

Metadata is made anew where the journal, the manifest or the group attributes still say what it was. An episode that was
cut off, or whose data are damaged, is kept up to its last good step and marked `truncated`. What is damaged moves to
`journal/set_aside/`. Every step of a repair leaves a store that repairs again, so a repair may itself be interrupted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tracekit.errors import TraceError
from tracekit.store import files, lock
from tracekit.store.checksums import checksums_from_json
from tracekit.store.committing import (
    commit_manifest,
    episode_record,
    finish_moves,
    move_into_place,
    set_aside,
    set_copy_aside,
)
from tracekit.store.identity import TRACE_FORMAT, VERSION, check_readable, root_attributes
from tracekit.store.journal import Commits, Journal, read_journal
from tracekit.store.manifest import Manifest
from tracekit.store.mending import adopt_by_chunks, mend_episode, write_anew
from tracekit.store.places import (
    commits_file,
    episodes_folder,
    lock_file,
    manifests_folder,
    running_episodes,
    running_folder,
    set_aside_folder,
)
from tracekit.store.salvage import salvage_cut_off
from tracekit.store.sealed import seal
from tracekit.store.verifying import damaged_files, load_manifest
from tracekit.store.writer import head_record, root_files

__all__ = ["Repair", "repair"]


@dataclass(frozen=True, slots=True)
class Repair:
    """What `repair` did, one sentence per action; none for a store that was whole."""

    path: str
    actions: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def repair(path: str | Path) -> Repair:
    """Bring the store at `path` to a state that `verify` finds clean, and say what was done to it.

    Raises TraceError if `path` is no store, if a writer is at work on it, or if the disk refuses.
    """
    root = Path(path)
    try:
        check_readable(root, writing=True)
        done = [*_make_way(root, root / "journal"), *_make_way(root, lock_file(root), folder=False)]
        files.make_folder(root / "journal")
        held = lock.acquire(root)
        try:
            return Repair(str(root), (*done, *_repair(root)))
        finally:
            lock.release(held)
    except OSError as error:
        raise TraceError(
            f"{error.filename or root}: repair was stopped: {error.strerror}; nothing was lost: mend the cause and "
            "repair again"
        ) from error


def _make_way(root: Path, path: Path, *, folder: bool = True) -> Iterator[str]:
    """Set aside what stands at `path` where a folder (or a file) belongs, and say so. Raises OSError."""
    if os.path.lexists(path) and not (path.is_dir() if folder else path.is_file()):
        out = path.with_name(f"{path.name}.{os.getpid()}.old")  # first: what is set aside goes to a folder in `journal`
        files.rename(path, out)
        files.make_folder(root / "journal")
        set_aside(root, out, _flat_name(root, path))
        yield f"{path.relative_to(root)}: was no {'folder' if folder else 'file'}; set aside"


def _repair(root: Path) -> Iterator[str]:
    yield from _make_way(root, set_aside_folder(root))
    for folder in (episodes_folder(root), running_folder(root), manifests_folder(root)):
        yield from _make_way(root, folder)
        files.make_folder(folder)
    yield from _mend_journal(root)
    journal = read_journal(root)
    finish_moves(root, journal)
    commits = Commits(root, journal)
    try:
        yield from _mend_root(root, journal)
        for record in journal.episodes().values():
            yield from mend_episode(root, commits, record)
        for name in sorted(running_episodes(root)):
            yield _adopt(root, commits, name) or salvage_cut_off(root, commits, name)
        for folder in sorted(episodes_folder(root).glob("*/")):
            if folder.name not in commits.episodes:
                adopted = adopt_by_chunks(root, commits, folder.name)
                yield from adopted or [_set_unknown_aside(root, folder)]
    finally:
        commits.close()
    _clear_manifests(root)


def _mend_journal(root: Path) -> Iterator[str]:
    """Write the journal anew if it is damaged: its whole lines, and those that manifests still vouch for."""
    there = commits_file(root).is_file()
    journal = read_journal(root) if there else Journal((), (1,), 0, 0)
    known = journal.episodes()
    lost = {}
    for manifest, record in _whole_manifests(root):
        name = manifest.info.id
        if (episodes_folder(root) / name).is_dir() and (name not in known or load_manifest(root, known[name]) is None):
            lost[manifest.seq] = record
    if not (journal.bad_lines or journal.torn or lost or journal.head is None):
        return
    if commits_file(root).is_dir():
        set_aside(root, commits_file(root), _flat_name(root, commits_file(root)))
    if there:
        set_copy_aside(root, commits_file(root).read_bytes(), _flat_name(root, commits_file(root)))
    lines = {record["seq"]: record for record in journal.records}
    if journal.head is None:
        attributes = root_attributes(root)
        version = str(attributes.pop("version", VERSION))
        lines[0] = head_record(attributes, str(attributes.pop("format", TRACE_FORMAT)), version)
        yield f"journal: the root attributes were lost; {'those of zarr.json' if attributes else 'none'} replace them"
    lines |= {seq: record for seq, record in lost.items() if seq not in lines}
    gaps = {seq: {"kind": "lost"} for seq in range(max(lines)) if seq not in lines}
    whole = [seal({**record, "seq": seq}) for seq, record in sorted({**gaps, **lines}.items())]
    files.replace(commits_file(root), b"".join(whole))
    yield f"journal: written anew; {len(lost)} of its lines were taken from manifests"


def _whole_manifests(root: Path) -> Iterator[tuple[Manifest, dict[str, Any]]]:
    """Every manifest whose seal holds, with the journal line that commits it, in the order of those lines."""
    found = []
    for path in manifests_folder(root).glob("*.json"):
        data = path.read_bytes() if path.is_file() else b""
        manifest = Manifest.unsealed(data)
        if manifest is not None:
            found.append((manifest, episode_record(manifest, path.name, data)))
    yield from sorted(found, key=lambda pair: pair[0].seq)


def _mend_root(root: Path, journal: Journal) -> Iterator[str]:
    head = journal.records[0]
    contents = root_files(head["attributes"], head["format"], head["version"])
    for problem in list(damaged_files(root, root, checksums_from_json(head), None)):
        yield write_anew(root, root / problem.path, contents[problem.path])


def _adopt(root: Path, commits: Commits, episode: str) -> str | None:
    """Commit an episode that was complete but for its journal line; None if it was not."""
    folder = running_folder(root) / episode
    for manifest, _ in _whole_manifests(root):
        if manifest.info.id == episode and not any(damaged_files(root, folder, manifest.files, episode)):
            commit_manifest(root, commits, manifest)
            move_into_place(root, episode)
            return f"episode {episode!r}: was complete but for its commit; committed"
    return None


def _set_unknown_aside(root: Path, folder: Path) -> str:
    set_aside(root, folder, folder.name)
    return f"episode {folder.name!r}: nothing vouches for it; set aside"


def _clear_manifests(root: Path) -> None:
    """Set aside the manifests that no journal line names any more."""
    named = {record["manifest"]["name"] for record in read_journal(root).episodes().values()}
    for path in manifests_folder(root).iterdir():
        if path.name not in named:
            set_aside(root, path, path.name)


def _flat_name(root: Path, path: Path) -> str:
    return "-".join(path.relative_to(root).parts)
