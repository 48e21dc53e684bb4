"""Telling a trace from everything else that may be at a path, and one version of the format from another.

Version policy: `major.minor`. A minor version may add record kinds, fields and files; a reader passes over what it does
not know, so every minor version of its major one is readable. Appending is refused on a newer minor version, whose
promises this version cannot keep. A major version changes what existing names mean, and only its own readers open it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tracekit.digest import canonical_json
from tracekit.errors import TraceError, TracekitError
from tracekit.store.journal import Journal, read_journal
from tracekit.store.places import commits_file, episodes_folder, manifests_folder

__all__ = ["TRACE_FORMAT", "VERSION", "check_identity", "check_readable", "open_journal", "root_attributes"]

TRACE_FORMAT = "tracekit.trace"
VERSION = "1.1"
_OWN = VERSION.partition(".")[0]


def check_identity(root: Path, expected: str, *, writing: bool = False) -> dict[str, Any]:
    """The head of the journal, after checking that `root` is a store of format `expected` that this version reads.

    Raises TraceError, saying what is there instead, if it is not.
    """
    check_readable(root, writing=writing)
    head = _head(root)
    if head is None:
        raise TraceError(f"{root}: the first line of the journal is damaged; run `tracekit repair` on the trace")
    if head["format"] != expected:
        raise TraceError(f"{root} is a {head['format']} store, not a {expected} one; give the path of the other")
    return head


def check_readable(root: Path, *, writing: bool = False) -> None:
    """Refuse (TraceError) a path that is no store of any format, however damaged, or one of another major version.

    For `writing`, one of a newer minor version too.
    """
    about = _head(root) or root_attributes(root)
    ours = str(about.get("format", "")).startswith("tracekit.")
    version = str(about.get("version", VERSION))
    major, _, minor = version.partition(".")
    if ours and major != _OWN:
        raise TraceError(f"{root} has format version {version}, this tracekit reads {_OWN}.x; update it")
    if writing and ours and minor.isdecimal() and int(minor) > int(VERSION.partition(".")[2]):
        raise TraceError(f"{root} has format version {version}, this tracekit writes {VERSION}; update it to go on")
    if not (
        commits_file(root).is_file() or manifests_folder(root).is_dir() or (ours and episodes_folder(root).is_dir())
    ):
        raise TraceError(f"{root} is not a trace: {_what_is(root)}; give the path of a recorded trace")


def root_attributes(root: Path) -> dict[str, Any]:
    """The attributes of a group as any zarr reader would see them, empty if they cannot be read or written again.

    NaN and infinities, which JSON has not, are read as None.
    """
    try:
        said = json.loads((root / "zarr.json").read_bytes(), parse_constant=lambda _: None)
        attributes = dict(said["attributes"])
        canonical_json(attributes)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, TracekitError):
        return {}
    return attributes


def open_journal(root: Path, expected: str) -> Journal:
    """The journal of the store, checked; raises TraceError as `check_identity`, and for a damaged journal."""
    check_identity(root, expected)
    folders = {entry.name for entry in episodes_folder(root).iterdir() if entry.is_dir()}  # before reading the journal:
    journal = read_journal(root)  # an episode that is committed in between is in its folder only after its line
    if journal.bad_lines:
        raise TraceError(
            f"{root}: line {journal.bad_lines[0]} of the journal is damaged; run `tracekit repair` on the trace"
        )
    unknown = folders - journal.episodes().keys()
    if unknown:
        raise TraceError(
            f"{root}: episode {min(unknown)!r} is not in the journal, which has lost its end; "
            "run `tracekit repair` on the trace"
        )
    return journal


def _what_is(path: Path) -> str:
    """What stands at a path that is no store, in words."""
    if not path.is_dir():
        return "it is a file" if path.exists() else "there is no such path"
    names = sorted(entry.name for entry in path.iterdir())
    if not names:
        return "it is an empty folder"
    if "zarr.json" in names:
        found = root_attributes(path).get("format")
        return f"it is a zarr store without a trace's journal{f' (format {found})' if found else ''}"
    if {".zgroup", ".zarray"} & set(names):
        return "it is a zarr version 2 store"
    return f"it is a folder with {', '.join(names[:3])}{' and more' * (len(names) > 3)}"


def _head(root: Path) -> dict[str, Any] | None:
    return read_journal(root).head if commits_file(root).is_file() else None
