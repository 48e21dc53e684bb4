"""Is every byte of a store as it was written?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tracekit.errors import TraceError
from tracekit.store import lock
from tracekit.store.checksums import Checksum, checksum_of, checksums_from_json, summed
from tracekit.store.identity import check_readable
from tracekit.store.journal import Journal, read_journal
from tracekit.store.manifest import Manifest
from tracekit.store.places import (
    commits_file,
    episodes_folder,
    manifest_file,
    manifests_folder,
    running_episodes,
    set_aside_folder,
)
from tracekit.store.reader import folder_of
from tracekit.store.sealed import unseal

__all__ = ["Problem", "Report", "damaged_files", "load_manifest", "verify"]


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
    check_readable(root)
    try:
        return _verify(root)
    except OSError as error:
        raise TraceError(f"{root}: cannot be read: {error.strerror}; check the disk and its rights") from error


def _verify(root: Path) -> Report:
    writing = lock.is_held(root)
    folders = {entry.name for entry in episodes_folder(root).glob("*/")} if episodes_folder(root).is_dir() else set()
    journal = read_journal(root) if commits_file(root).is_file() else Journal((), (1,), 0, 0)
    problems = [*_journal_problems(journal, writing), *_root_problems(root, journal)]
    notes = []
    legacy = 0
    count, nbytes = 1, journal.size
    records = journal.episodes()
    for episode, record in records.items():
        manifest = load_manifest(root, record)
        if manifest is None:
            name = record["manifest"]["name"]
            problems.append(Problem(f"journal/manifests/{name}", "is damaged or missing", episode))
            continue
        folder = folder_of(root, episode)
        problems += damaged_files(root, folder, manifest.files, episode)
        notes += _surplus(root, folder, manifest)
        legacy += manifest.legacy
        count += 1 + len(manifest.files)
        nbytes += record["manifest"]["size"] + sum(listed.nbytes for listed in manifest.files.values())
    unknown = sorted(folders - records.keys())
    problems += [Problem(f"episodes/{episode}", "is not in the journal", episode) for episode in unknown]
    for episode in sorted(running_episodes(root) - records.keys()):
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


def load_manifest(root: Path, record: Mapping[str, Any]) -> Manifest | None:
    """The manifest that a journal line names, or None if it is not exactly what was committed."""
    path = manifest_file(root, record["manifest"]["name"])
    if not path.is_file():
        return None
    data = path.read_bytes()
    found = unseal(data)
    if found is None or not Manifest.checksum_in(record).fits(checksum_of(data)):
        return None
    return Manifest.from_json(found)


def damaged_files(root: Path, folder: Path, listed: Mapping[str, Checksum], episode: str | None) -> Iterator[Problem]:
    """Every file of `listed` (path in `folder` -> checksum) that is not as listed."""
    for name, checksum in listed.items():
        path = folder / name
        shown = str(path.relative_to(root))
        if not path.is_file():
            yield Problem(shown, "is missing", episode)
        elif path.stat().st_size != checksum.nbytes:
            yield Problem(shown, f"has {path.stat().st_size} bytes instead of {checksum.nbytes}", episode)
        elif not checksum.fits(summed(path).result()):
            yield Problem(shown, "has other contents than were written", episode)


def _journal_problems(journal: Journal, writing: bool) -> Iterator[Problem]:
    for line in journal.bad_lines:
        yield Problem("journal/commits.jsonl", f"is damaged or missing in line {line}")
    if journal.head is None and not journal.bad_lines:
        yield Problem("journal/commits.jsonl", "is empty")
    if journal.torn and not writing:
        yield Problem("journal/commits.jsonl", f"ends in {journal.torn} bytes of an unfinished line")


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
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    surplus = sorted(found - manifest.files.keys())
    return [f"{(folder / name).relative_to(root)} is no part of the episode" for name in surplus]
