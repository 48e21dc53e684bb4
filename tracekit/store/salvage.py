"""Keeping the good part of an episode: all steps before the first one that is damaged or was never finished."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tracekit.errors import TraceError
from tracekit.store import files
from tracekit.store.committing import Shard, commit, set_aside, set_copy_aside
from tracekit.store.journal import Commits
from tracekit.store.metadata import shard_name
from tracekit.store.places import running_folder, steps_log
from tracekit.store.schema import STREAMS, ArraySpec, EpisodeInfo, check_schema, stream_of
from tracekit.store.sealed import unseal
from tracekit.store.shards import CRC_BYTES, cut_shard, index_bytes, leading_good
from tracekit.store.tables import stored_arrays

__all__ = ["keep_good_steps", "make_parents", "salvage_cut_off"]


def keep_good_steps(
    root: Path,
    commits: Commits,
    info: EpisodeInfo,
    schema: Mapping[str, ArraySpec],
    source: Path,
    sizes: Mapping[str, Sequence[int]],
    foreign: Collection[str] = (),
) -> int | None:
    """Commit, marked truncated, what is good of an episode whose shards in the folder `source` have chunks of `sizes`.

    Returns the steps kept; None, with nothing committed, if there is no good row at all. `source` is the episode's
    running folder, whose shards are then cut in place, or any other, which stays as it is. `foreign`: arrays none of
    whose rows count as good, because they are whole but not what was recorded. Raises OSError.
    """
    specs = stored_arrays(schema)
    good = {
        name: 0 if name in foreign else leading_good(source / name / shard_name(specs[name]), sizes[name])
        for name in sizes
    }
    rows = {name: min(good[other] for other in good if stream_of(other) == stream_of(name)) for name in good}
    if not any(rows.values()):
        return None
    running = running_folder(root) / info.id
    files.make_folder(running)
    shards = {}
    for name, spec in specs.items():
        kept = list(sizes[name][: rows[name]])
        path = source / name / shard_name(spec)
        if source == running and path.is_file():
            _set_tail_aside(root, path, kept)
        if any(kept):
            make_parents(running, f"{name}/{path.name}")
            shards[name] = Shard(kept, cut_shard(path, running / name / shard_name(spec), kept))
        elif not spec.optional:
            shards[name] = Shard(kept)
    steps = min((rows[name] for name in rows if stream_of(name) is None), default=0)
    commit(root, commits, replace(info, steps=steps, truncated=True), schema, shards)
    return steps


def salvage_cut_off(root: Path, commits: Commits, episode: str) -> str:
    """Commit the good steps of an episode that was never finished, or set it aside; says which. Raises OSError."""
    folder, log = running_folder(root) / episode, steps_log(root, episode)
    try:
        header, sizes = _read_log(log)
    except (AttributeError, KeyError, TypeError, ValueError, TraceError):  # whole, but not what a writer logs
        header, sizes = None, {}
    if header is not None and folder.is_dir():
        info = EpisodeInfo.from_json(header["info"])
        schema = {key: ArraySpec.from_json(spec) for key, spec in header["schema"]}
        steps = keep_good_steps(root, commits, info, schema, folder, sizes)
        if steps is not None:
            return f"episode {episode!r}: was cut off; its first {steps} steps are kept, marked truncated"
    for path in (folder, log):
        if path.exists():
            set_aside(root, path, path.name)
    return f"episode {episode!r}: was cut off before its first step was whole; set aside"


def _read_log(log: Path) -> tuple[dict[str, Any] | None, dict[str, list[int]]]:
    """The header of a step log (None if it is lost) and, for each array, the chunk sizes of all logged steps."""
    lines = log.read_bytes().splitlines(keepends=True) if log.is_file() else []
    header = unseal(lines[0]) if lines else None
    if header is None or header["info"]["id"] != log.stem:
        return None, {}
    schema = {key: ArraySpec.from_json(spec) for key, spec in header["schema"]}
    check_schema(schema)
    specs = stored_arrays(schema)
    sizes: dict[str, list[int]] = {name: [] for name in specs}
    of_steps = [name for name in specs if stream_of(name) is None]
    for line in lines[1:]:
        entry = unseal(line)
        if entry is None:
            break
        if "stream" in entry:
            for part in ("time_ns", "value"):
                name = f"{STREAMS}{entry['stream']}/{part}"
                sizes[name] = [specs[name].row_nbytes + CRC_BYTES] * entry["samples"]
        else:
            for name, size in zip(of_steps, entry["sizes"], strict=True):
                sizes[name].append(size)
    return header, sizes


def _set_tail_aside(root: Path, path: Path, kept: Sequence[int]) -> None:
    """Keep a copy of what is about to be cut off a shard, unless it is nothing but the index."""
    with path.open("rb") as file:
        file.seek(sum(kept))
        tail = file.read()
    if tail != index_bytes(kept):
        parts = path.relative_to(running_folder(root)).parts
        set_copy_aside(root, tail, "-".join([*parts, "tail"]))
    if not any(kept):
        files.remove_file(path)


def make_parents(folder: Path, name: str) -> None:
    """Create the folders that lead to the file `name` below `folder`, which exists."""
    for parent in reversed(Path(name).parents):
        files.make_folder(folder / parent)
