"""The file of finished episodes, by which a stopped evaluation goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recorders.sim.evaluate.episode import EpisodeOutcome
from tracekit.errors import TraceError

__all__ = ["add_episode", "known_episodes"]

_BEGINNING = b'{"key"'
_NOT_AN_EPISODE = (ValueError, KeyError, TypeError, OverflowError, RecursionError)


def known_episodes(path: Path) -> dict[str, EpisodeOutcome]:
    """Episodes by key that an earlier run left in `path`, none where there is no such file.

    A last line that was cut off is removed, and its episode is run again: a beginning of a line, without its end, after
    lines that are episodes or with the beginning that they have. Raises TraceError, and changes nothing, for a file
    that holds anything else.
    """
    if not path.exists():
        return {}
    if not path.is_file():
        raise TraceError(f"{path}: no regular file, so no results to go on with; give --out a file")
    found: dict[str, EpisodeOutcome] = {}
    *lines, rest = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            _read(line, found)
        except _NOT_AN_EPISODE as error:
            raise _refusal(path, number, error) from error
    if not rest:
        return found
    try:
        _read(rest, found)
    except _NOT_AN_EPISODE as error:
        ours = bool(lines) or rest.startswith(_BEGINNING) or _BEGINNING.startswith(rest)
        if not ours or _is_json(rest):
            raise _refusal(path, len(lines) + 1, error) from error
        with path.open("r+b") as file:
            file.truncate(sum(len(line) + 1 for line in lines))
    else:
        with path.open("ab") as file:
            file.write(b"\n")
    return found


def add_episode(path: Path, labels: dict[str, Any], outcome: EpisodeOutcome) -> None:
    """Append one episode; `labels` begin with its `key`."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(labels | outcome.to_json()) + "\n")


def _read(line: bytes, found: dict[str, EpisodeOutcome]) -> None:
    entry = json.loads(line.decode("utf-8"))
    found[str(entry["key"])] = EpisodeOutcome.from_json({key: entry[key] for key in EpisodeOutcome.__slots__})


def _refusal(path: Path, number: int, error: Exception) -> TraceError:
    return TraceError(f"{path}: line {number} is no episode ({type(error).__name__}: {error}); give --out another file")


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
