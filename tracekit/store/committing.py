"""How an episode becomes visible, in the order that makes a crash at any point harmless.

1. metadata and manifest are written, everything is synced; 2. the journal line is written and synced: from here on the
episode exists; 3. its folder moves from `journal/running/` to `episodes/`. Readers look in both places, and the next
writer catches up on a move that a crash prevented.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tracekit.store import files
from tracekit.store.journal import Commits, Journal
from tracekit.store.metadata import ArrayDocument, array_document, group_document, shard_name
from tracekit.store.places import episodes_folder, manifest_file, running_folder, steps_log
from tracekit.store.schema import ArraySpec, EpisodeInfo, rows_axis
from tracekit.store.sealed import crc32c, seal
from tracekit.store.tables import stored_arrays, tables_of

__all__ = ["Shard", "commit", "documents", "finish_moves", "key_places"]


@dataclass(frozen=True, slots=True)
class Shard:
    """A finished shard file: steps (or samples), bytes, CRC32C of the whole file. No bytes: there is no file."""

    rows: int
    nbytes: int = 0
    crc: int = 0


def commit(
    root: Path, commits: Commits, info: EpisodeInfo, schema: Mapping[str, ArraySpec], shards: Mapping[str, Shard]
) -> None:
    """Commit the running episode `info.id`, whose finished and synced shards are `shards` (zarr path -> shard).

    Optional arrays that no step had are left out of `shards`. Raises OSError; before the journal line is written the
    episode is then still a running one.
    """
    folder = running_folder(root) / info.id
    places = key_places(schema, shards)
    specs = stored_arrays(schema)
    entries = {f"{name}/{shard_name(specs[name])}": (s.nbytes, s.crc) for name, s in shards.items() if s.nbytes}
    contents = documents(info, schema, {name: shard.rows for name, shard in shards.items()})
    parents = sorted({parent for path in contents for parent in Path(path).parents})
    for parent in parents:
        files.make_folder(folder / parent)
    for path, data in contents.items():
        _write(folder / path, data)
        entries[path] = (len(data), crc32c(data))
    for parent in parents:
        files.sync_folder(folder / parent)
    info = replace(info, nbytes=sum(size for size, _ in entries.values()))
    manifest = seal({"info": info.to_json(), "keys": places, "files": entries})
    files.replace(manifest_file(root, info.id, commits.next_seq), manifest)
    commits.append(
        {"kind": "episode", "info": info.to_json(), "manifest": {"size": len(manifest), "crc32c": crc32c(manifest)}}
    )
    _move(root, info.id)


def key_places(schema: Mapping[str, ArraySpec], stored: Mapping[str, Any]) -> dict[str, tuple[str, int | None]]:
    """Key -> (zarr path, column or None) of every key whose array is among `stored`, in schema order."""
    columns = {key: (name, i) for name, keys in tables_of(schema).items() for i, key in enumerate(keys)}
    places: dict[str, tuple[str, int | None]] = {key: columns.get(key, (key, None)) for key in schema}
    return {key: place for key, place in places.items() if place[0] in stored}


def documents(info: EpisodeInfo, schema: Mapping[str, ArraySpec], rows: Mapping[str, int]) -> dict[str, bytes]:
    """Path in the episode's folder -> contents of every `zarr.json`, for the arrays in `rows` (zarr path -> rows)."""
    tables = tables_of(schema)
    specs = stored_arrays(schema)
    found: dict[str, bytes] = {}
    for name, count in rows.items():
        columns = tuple((key, schema[key]) for key in tables.get(name, ()))
        for parent in Path(name).parents:
            found[str(parent / "zarr.json")] = group_document({})
        found[f"{name}/zarr.json"] = array_document(ArrayDocument(specs[name], count, rows_axis(name), columns))
    about = {name: value for name, value in info.to_json().items() if name != "nbytes"}
    return {**found, "zarr.json": group_document(about)}


def finish_moves(root: Path, journal: Journal) -> None:
    """Move committed episodes that a crash left in the running folder. Raises OSError."""
    for episode in journal.episodes():
        if (running_folder(root) / episode).is_dir():
            _move(root, episode)
        files.remove_file(steps_log(root, episode))


def _move(root: Path, episode: str) -> None:
    files.rename(running_folder(root) / episode, episodes_folder(root) / episode)
    files.sync_folder(episodes_folder(root))
    files.sync_folder(running_folder(root))
    files.remove_file(steps_log(root, episode))


def _write(path: Path, data: bytes) -> None:
    """A new file; what an earlier, interrupted commit of the same episode left is replaced."""
    files.remove_file(path)
    descriptor = files.create(path)
    try:
        files.write(descriptor, [data])
        files.sync(descriptor)
    finally:
        files.close(descriptor)
