"""Is every byte of a store as it was written?"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tracekit.errors import TraceError
from tracekit.store import lock
from tracekit.store.checksums import Checksum, checksum_of, checksums_from_json, summed
from tracekit.store.identity import check_readable
from tracekit.store.journal import Journal, newest_record, read_journal
from tracekit.store.manifest import Manifest
from tracekit.store.places import (
    commits_file,
    episodes_folder,
    lock_file,
    manifest_file,
    manifests_folder,
    running_episodes,
    running_folder,
    set_aside_folder,
)
from tracekit.store.reader import folder_of

__all__ = ["Problem", "Report", "damaged_files", "load_manifest", "verify"]

_LOST = "is damaged or missing"
_PATIENCE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it was written: the file (relative to the store), what is wrong, the episode if any."""

    path: str
    what: str
    episode: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` found. `files` and `nbytes`: checked byte by byte. `notes`: harmless, but worth knowing."""

    path: str
    episodes: int
    files: int
    nbytes: int
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Plain values, `clean` included."""
        return {**asdict(self), "clean": self.clean}


def verify(path: str | Path) -> Report:
    """Check every file of the store at `path` against the length and SHA-256 under which it was committed.

    Any flipped bit, cut, missing or exchanged file, in data or metadata, is a problem; so is an episode that was cut
    off (unless a writer is at work on it now). Raises TraceError if `path` is no store, or of a version that this one
    cannot read.
    """
    root = Path(path)
    try:
        check_readable(root)
        return _verify(root)
    except OSError as error:
        raise TraceError(f"{root}: cannot be read: {error.strerror}; check the disk and its rights") from error


def _verify(root: Path) -> Report:
    writing = lock.is_held(root)
    folders = {entry.name for entry in episodes_folder(root).glob("*/")} if episodes_folder(root).is_dir() else set()
    journal = read_journal(root) if commits_file(root).is_file() else Journal((), (1,), 0, 0)
    writing = writing or lock.is_held(root)  # one that began meanwhile
    problems = [*_misplaced(root), *_journal_problems(journal, writing), *_root_problems(root, journal)]
    notes = []
    legacy = 0
    count, nbytes = 1, journal.size
    records = journal.episodes()
    for episode in list(records):
        record, manifest, found = _checked(root, records[episode])
        records[episode] = record
        problems += found
        if manifest is None:
            continue
        notes += _surplus(root, folder_of(root, episode), manifest)
        legacy += manifest.legacy
        count += 1 + len(manifest.files)
        nbytes += record["manifest"]["size"] + sum(listed.nbytes for listed in manifest.files.values())
    unknown = sorted(folders - records.keys())
    problems += [Problem(f"episodes/{episode}", "is not in the journal", episode) for episode in unknown]
    started = sorted(running_episodes(root) - records.keys())
    writing = writing or lock.is_held(root)
    for episode in started:
        if writing:
            notes.append(f"episode {episode!r} is being written")
        else:
            problems.append(Problem(f"journal/running/{episode}", "was cut off before it was finished", episode))
    if legacy:
        notes.append(
            f"{legacy} episodes were recorded by format 1.0, without SHA-256: files exchanged for one another are not "
            "found in them"
        )
    notes += [f"{path.relative_to(root)} is no part of the store" for path in _unknown(root, records.values())]
    aside = len(list(set_aside_folder(root).glob("*")))
    if aside:
        notes.append(f"{aside} damaged items lie in journal/set_aside, unchecked")
    return Report(str(root), len(records), count, nbytes, tuple(problems), tuple(notes))


def _checked(root: Path, record: dict[str, Any]) -> tuple[dict[str, Any], Manifest | None, list[Problem]]:
    """The record of an episode, its manifest and what is wrong with it.

    A pruning or a repair that goes on meanwhile commits the episode anew and then takes its old files away, or puts new
    ones in their places: what seems wrong is looked at again, by the record that holds then.
    """
    episode = record["info"]["id"]
    manifest = load_manifest(root, record)
    listed = {} if manifest is None else manifest.files
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        writing = lock.is_held(root)
        folder = folder_of(root, episode)
        found = {name: p for name in listed for p in damaged_files(root, folder, {name: listed[name]}, episode)}
        if manifest is not None and not found:
            return record, manifest, []
        newest = newest_record(root, episode)
        if newest is not None and newest != record:
            return _checked(root, newest)
        if manifest is None:
            return record, None, [Problem(f"journal/manifests/{record['manifest']['name']}", _LOST, episode)]
        if not writing or time.monotonic() > until:
            return record, manifest, list(found.values())
        listed = {name: listed[name] for name in found}
        time.sleep(0.01)


def load_manifest(root: Path, record: Mapping[str, Any]) -> Manifest | None:
    """The manifest that a journal line names, or None if it is not exactly what was committed."""
    path = manifest_file(root, record["manifest"]["name"])
    try:
        data = path.read_bytes() if path.is_file() else b""
    except FileNotFoundError:  # taken away this very moment
        return None
    found = Manifest.unsealed(data)
    whole = Manifest.checksum_in(record).fits(checksum_of(data))
    return found if found is not None and whole and found.info.id == record["info"]["id"] else None


def damaged_files(root: Path, folder: Path, listed: Mapping[str, Checksum], episode: str | None) -> Iterator[Problem]:
    """Every file of `listed` (path in `folder` -> checksum) that is not as listed."""
    for name, checksum in listed.items():
        what = _damage(folder / name, checksum)
        if what:
            yield Problem(str((folder / name).relative_to(root)), what, episode)


def _damage(path: Path, checksum: Checksum) -> str:
    try:
        if not path.is_file():
            return "is missing"
        size = path.stat().st_size
        if size != checksum.nbytes:
            return f"has {size} bytes instead of {checksum.nbytes}"
        return "" if checksum.fits(summed(path).result()) else "has other contents than were written"
    except FileNotFoundError:  # taken away this very moment
        return "is missing"


def _journal_problems(journal: Journal, writing: bool) -> Iterator[Problem]:
    for line in journal.bad_lines:
        yield Problem("journal/commits.jsonl", f"is damaged or missing in line {line}")
    if journal.head is None and not journal.bad_lines:
        yield Problem("journal/commits.jsonl", "is empty")
    if journal.torn and not writing:
        yield Problem("journal/commits.jsonl", f"ends in {journal.torn} bytes of an unfinished line")


def _misplaced(root: Path) -> Iterator[Problem]:
    """What stands where a folder, or the lock's file, belongs: no writer could go on."""
    own = (episodes_folder(root), running_folder(root), manifests_folder(root), set_aside_folder(root))
    for folder in (root / "journal", *own):
        if os.path.lexists(folder) and not folder.is_dir():
            yield Problem(str(folder.relative_to(root)), "is no folder")
    if os.path.lexists(lock_file(root)) and not lock_file(root).is_file():
        yield Problem("journal/lock", "is no file")


def _root_problems(root: Path, journal: Journal) -> Iterator[Problem]:
    if journal.head is not None:
        yield from damaged_files(root, root, checksums_from_json(journal.head), None)


def _unknown(root: Path, records: Iterable[Mapping[str, Any]]) -> list[Path]:
    """What lies in the store and nothing accounts for."""
    named = {record["manifest"]["name"] for record in records}
    found = [path for path in root.iterdir() if path.name not in {"zarr.json", "episodes", "journal"}]
    for folder, own in (
        (episodes_folder(root), {"zarr.json"}),
        (root / "journal", {"zarr.json", "commits.jsonl", "lock", "manifests", "running", "set_aside"}),
        (manifests_folder(root), named),
    ):
        inside = folder.iterdir() if folder.is_dir() else ()
        found += [path for path in inside if path.name not in own]
    return sorted(path for path in found if path.parent != episodes_folder(root) or not path.is_dir())


def _surplus(root: Path, folder: Path, manifest: Manifest) -> list[str]:
    if not folder.is_dir():
        return []
    found = {str(Path(base, name).relative_to(folder)) for base, _, names in os.walk(folder) for name in names}
    surplus = sorted(found - manifest.files.keys())
    return [f"{(folder / name).relative_to(root)} is no part of the episode" for name in surplus]
