"""How an episode becomes visible, in the order that makes a crash at any point harmless.

1. metadata and manifest are written, everything is synced; 2. the journal line is written and synced: from here on the
episode exists; 3. its folder moves from `journal/running/` to `episodes/`. Readers look in both places, and the next
writer catches up on a move that a crash prevented.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tracekit.store import files
from tracekit.store.checksums import Checksum, checksum_of
from tracekit.store.journal import Commits, Journal
from tracekit.store.manifest import Manifest
from tracekit.store.metadata import shard_name
from tracekit.store.places import (
    episodes_folder,
    manifest_file,
    running_folder,
    set_aside_folder,
    steps_log,
)
from tracekit.store.schema import ArraySpec, EpisodeInfo
from tracekit.store.tables import stored_arrays, tables_of

__all__ = [
    "Shard",
    "commit",
    "commit_manifest",
    "episode_record",
    "finish_moves",
    "move_into_place",
    "set_aside",
    "set_copy_aside",
]


_LONGEST_NAME = 206
"""Bytes: an id and `.jsonl`. File systems take 255, and numbers and `.tmp` come behind."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A finished shard: bytes of each chunk (0: absent), checksum of the file (None if no chunk needs one)."""

    sizes: Sequence[int]
    checksum: Checksum | None = None


def commit(
    root: Path, commits: Commits, info: EpisodeInfo, schema: Mapping[str, ArraySpec], shards: Mapping[str, Shard]
) -> None:
    """Commit the running episode `info.id`, whose finished and synced shards are `shards` (zarr path -> shard).

    Optional arrays that no step had are left out of `shards`. An episode of the same id is replaced; its files are set
    aside. Raises OSError; before the journal line is written the episode is then still a running one.
    """
    folder = running_folder(root) / info.id
    specs = stored_arrays(schema)
    in_tables = {key for keys in tables_of(schema).values() for key in keys}
    manifest = Manifest(
        info,
        {key: spec for key, spec in schema.items() if key in shards or key in in_tables},
        rows={name: len(shard.sizes) for name, shard in shards.items()},
        chunks={n: s.sizes for n, s in shards.items() if s.checksum and (specs[n].optional or specs[n].codec)},
        files={f"{name}/{shard_name(specs[name])}": s.checksum for name, s in shards.items() if s.checksum},
    )
    contents = manifest.documents()
    parents = sorted({parent for path in contents for parent in Path(path).parents})
    for parent in parents:  # `.` comes first, every folder before what is in it
        files.make_folder(folder / parent)
    for path, data in contents.items():
        _write(folder / path, data)
    for parent in parents:
        files.sync_folder(folder / parent)
    commit_manifest(root, commits, manifest.with_documents())
    move_into_place(root, info.id)


def commit_manifest(root: Path, commits: Commits, manifest: Manifest) -> None:
    """Make `manifest` the current one of its episode. The files it lists must be on the disk. Raises OSError."""
    path = manifest_file(root, f"{manifest.info.id}@{commits.next_seq}.json")
    data = replace(manifest, seq=commits.next_seq).seal()
    files.replace(path, data)
    commits.append(episode_record(manifest, path.name, data))


def episode_record(manifest: Manifest, name: str, data: bytes) -> dict[str, Any]:
    """The journal line that commits `manifest`, whose file `name` holds `data`."""
    found = checksum_of(data)
    about = {"name": name, "size": found.nbytes, "crc32c": found.crc32c}
    if not manifest.legacy:
        about["sha256"] = found.sha256
    return {"kind": "episode", "info": manifest.info.to_json(), "manifest": about}


def finish_moves(root: Path, journal: Journal) -> None:
    """Move committed episodes that a crash left in the running folder. Raises OSError."""
    for episode in journal.episodes():
        if (running_folder(root) / episode / "zarr.json").is_file():
            move_into_place(root, episode)
        _remove_log(root, episode)


def set_aside(root: Path, path: Path, name: str) -> Path:
    """Move `path` to the set-aside folder, under `name` or, where that is taken, `name` and a number.

    The end of a name that is too long for a file becomes a digest.
    """
    target = _free_place(root, name)
    files.rename(path, target)
    files.sync_folder(target.parent)
    files.sync_folder(path.parent)
    return target


def set_copy_aside(root: Path, data: bytes, name: str) -> None:
    """Write `data` to the set-aside folder, under `name` or, where that is taken, `name` and a number."""
    if data:
        files.replace(_free_place(root, name), data)


def _free_place(root: Path, name: str) -> Path:
    folder = set_aside_folder(root)
    files.make_folder(folder)
    encoded = os.fsencode(name)
    if len(encoded) > _LONGEST_NAME:
        name = f"{os.fsdecode(encoded[:_LONGEST_NAME])}-{hashlib.sha256(encoded).hexdigest()[:16]}"
    target, number = folder / name, 1
    while target.exists():
        number += 1
        target = folder / f"{name}-{number}"
    return target


def move_into_place(root: Path, episode: str) -> None:
    """Move a committed episode to `episodes/`; what it replaces there is set aside. Raises OSError."""
    target = episodes_folder(root) / episode
    if target.exists():
        set_aside(root, target, episode)
    files.rename(running_folder(root) / episode, target)
    files.sync_folder(episodes_folder(root))
    files.sync_folder(running_folder(root))
    _remove_log(root, episode)


def _remove_log(root: Path, episode: str) -> None:
    """Remove the step log of an episode; a folder of that name is another episode's, begun when ids might end so."""
    if steps_log(root, episode).is_file():
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
