"""The commit journal: an append-only file of sealed lines that says which episodes exist.

Line 0 describes the trace, every later line commits an episode, replaces one (same id again) or removes one. Sequence
numbers make a lost or doubled line visible. An episode moves to `episodes/` only after its line is on the disk: a last
line that is not whole was never committed, and a folder in `episodes/` that no line mentions means that the journal is
damaged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracekit.errors import TraceError
from tracekit.store import files
from tracekit.store.places import commits_file
from tracekit.store.schema import check_id
from tracekit.store.sealed import seal, unseal

__all__ = ["Commits", "Journal", "newest_record", "read_journal"]

_MANIFEST = re.compile(r"[A-Za-z0-9._-]+@[0-9]+\.json")


@dataclass(frozen=True, slots=True)
class Journal:
    """The journal as read.

    `bad_lines`: 1-based numbers of damaged lines, or of the first after a lost one. `size`: bytes of all lines.
    `torn`: bytes of a last line that is not whole.
    """

    records: tuple[dict[str, Any], ...]
    bad_lines: tuple[int, ...]
    size: int
    torn: int

    @property
    def head(self) -> dict[str, Any] | None:
        """The description of the trace (format, version, attributes, root files), None if its line is damaged."""
        return self.records[0] if self.records and self.records[0]["seq"] == 0 else None

    def episodes(self) -> dict[str, dict[str, Any]]:
        """Episode id -> its latest record, in committed order."""
        found: dict[str, dict[str, Any]] = {}
        for record in self.records:
            if record["kind"] == "episode":
                found[record["info"]["id"]] = record
            elif record["kind"] == "removed":
                found.pop(record["id"], None)
        return found


def read_journal(root: Path) -> Journal:
    """The journal of the store at `root`; raises FileNotFoundError if there is none."""
    data = commits_file(root).read_bytes()
    *lines, rest = data.split(b"\n")
    found = [_record(line + b"\n") for line in lines]
    torn = len(rest)
    if found and found[-1] is None:  # a power cut can leave the end of a line without its middle
        torn += len(lines.pop()) + 1
        found.pop()
    records = tuple(record for record in found if record is not None)
    bad = [number for number, record in enumerate(found, 1) if record is None]
    if not bad:
        bad = [number for number, record in enumerate(records, 1) if record["seq"] != number - 1][:1]
    return Journal(records, tuple(bad), len(data) - torn, torn)


def newest_record(root: Path, episode: str) -> dict[str, Any] | None:
    """The record of `episode` as the journal is now, None if it has none or cannot be read."""
    try:
        return read_journal(root).episodes().get(episode)
    except OSError:
        return None


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None if it is damaged, or names what could not be in this store."""
    record = unseal(line)
    try:
        if record is not None and record["kind"] == "episode":
            check_id(record["info"]["id"])
            if not _MANIFEST.fullmatch(record["manifest"]["name"]):
                return None
        return record if record is not None and type(record["seq"]) is int else None
    except (KeyError, TypeError, TraceError):
        return None


class Commits:
    """The journal held open by the one writer.

    `next_seq` numbers its next line, `episodes` has the latest record of every id.
    """

    def __init__(self, root: Path, journal: Journal) -> None:
        """Continue `journal`; what a crash left of an uncommitted line is cut off. Raises OSError."""
        self._descriptor = files.append_to(commits_file(root))
        self._size = journal.size
        self._torn = journal.torn > 0
        self.next_seq = journal.records[-1]["seq"] + 1
        self.episodes = journal.episodes()
        self._cut()

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one line; it is on the disk when this returns. On OSError nothing was committed."""
        numbered = {**record, "seq": self.next_seq}
        line = seal(numbered)
        self._cut()
        self._torn = True
        try:
            files.write(self._descriptor, [line])
            files.sync(self._descriptor)
        except OSError:
            with suppress(OSError):  # if even this fails, the next line is not written before it has succeeded
                self._cut()
            raise
        self._torn = False
        self._size += len(line)
        self.next_seq += 1
        if record["kind"] == "episode":
            self.episodes[record["info"]["id"]] = numbered
        elif record["kind"] == "removed":
            self.episodes.pop(record["id"], None)

    def close(self) -> None:
        """Release the file."""
        if self._descriptor >= 0:
            files.close(self._descriptor)
            self._descriptor = -1

    def _cut(self) -> None:
        if self._torn:
            files.truncate(self._descriptor, self._size)
            self._torn = False
