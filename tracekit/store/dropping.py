"""Giving disk space back: arrays that are no longer wanted leave a store for good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tracekit.errors import TraceError
from tracekit.store import files, lock
from tracekit.store.committing import commit_manifest, finish_moves
from tracekit.store.identity import check_readable
from tracekit.store.journal import Commits, read_journal
from tracekit.store.manifest import Manifest
from tracekit.store.places import episodes_folder, manifests_folder
from tracekit.store.schema import stream_of
from tracekit.store.sealed import crc32c
from tracekit.store.verifying import load_manifest

__all__ = ["Pruned", "prune_store"]


@dataclass(frozen=True, slots=True)
class Pruned:
    """What `prune_store` took away: the keys, from how many episodes, and the bytes that gave back."""

    path: str
    keys: tuple[str, ...]
    episodes: int
    nbytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def prune_store(path: str | Path, keys: Sequence[str], *, dry_run: bool = False) -> Pruned:
    """Delete the arrays whose keys match one of `keys` (names, or patterns such as `hidden/*`) from every episode.

    Readers see an episode with them or without them, never half; other arrays are not touched. Scalars that share a
    table stay: they take no space worth having. With `dry_run`, only says what would go. Raises TraceError, with
    nothing deleted, if `path` is no store, if its metadata are damaged, if a writer is at work on it, or if nothing
    matches.
    """
    root = Path(path)
    check_readable(root, writing=True)
    held = lock.acquire(root)
    try:
        return _prune(root, keys, dry_run=dry_run)
    except OSError as error:
        raise TraceError(f"{root}: pruning was stopped: {error.strerror}; prune again to go on") from error
    finally:
        lock.release(held)


def _prune(root: Path, patterns: Sequence[str], *, dry_run: bool) -> Pruned:
    journal = read_journal(root)
    records = journal.episodes()
    manifests = [m for record in records.values() if (m := load_manifest(root, record)) is not None]
    if journal.head is None or journal.bad_lines or len(manifests) < len(records):
        raise TraceError(f"{root}: its journal or a manifest is damaged; run `tracekit repair` before pruning")
    finish_moves(root, journal)
    going = {manifest.info.id: _matching(manifest, patterns) for manifest in manifests}
    names = sorted({key for keys in going.values() for key in keys})
    swept = not dry_run and sum(_sweep(root, manifest) for manifest in manifests if manifest.dropped) > 0
    if not names and not swept:
        there = sorted({key for manifest in manifests for key in manifest.schema if _own_array(manifest, key)})
        raise TraceError(f"{root}: no array matches {', '.join(patterns)}; it has: {', '.join(there) or 'none'}")
    changed = [manifest for manifest in manifests if going[manifest.info.id]]
    freed = sum(_bytes_of(manifest, going[manifest.info.id]) for manifest in changed)
    if not dry_run:
        commits = Commits(root, journal)
        try:
            for manifest in changed:
                _drop(root, commits, manifest, going[manifest.info.id])
        finally:
            commits.close()
    return Pruned(str(root), tuple(names), len(changed), freed)


def _matching(manifest: Manifest, patterns: Sequence[str]) -> list[str]:
    matching = [key for key in manifest.schema if any(fnmatchcase(key, pattern) for pattern in patterns)]
    for key in matching:
        stream = stream_of(key)
        if stream is not None and sum(stream_of(other) == stream for other in matching) != len(("time_ns", "value")):
            raise TraceError(f"stream {stream!r}: its times and values go together; give `streams/{stream}/*`")
    return [key for key in matching if _own_array(manifest, key)]


def _own_array(manifest: Manifest, key: str) -> bool:
    return manifest.places()[key] == (key, None)


def _bytes_of(manifest: Manifest, keys: Sequence[str]) -> int:
    return sum(manifest.files[path][0] for path in manifest.files if str(Path(path).parent) in keys)


def _drop(root: Path, commits: Commits, manifest: Manifest, keys: Sequence[str]) -> None:
    """Commit the episode without `keys`, then delete their folders; a crash in between leaves files nobody reads."""
    kept = replace(
        manifest,
        schema={key: spec for key, spec in manifest.schema.items() if key not in keys},
        rows={name: count for name, count in manifest.rows.items() if name not in keys},
        chunks={name: sizes for name, sizes in manifest.chunks.items() if name not in keys},
        files={path: about for path, about in manifest.files.items() if not path.endswith("zarr.json")},
        dropped=tuple(sorted({*manifest.dropped, *keys})),
    )
    shards = {path: about for path, about in kept.files.items() if str(Path(path).parent) not in keys}
    documents = kept.documents()
    entries = {**shards, **{path: (len(data), crc32c(data)) for path, data in documents.items()}}
    info = replace(kept.info, nbytes=sum(size for size, _ in entries.values()))
    commit_manifest(root, commits, replace(kept, info=info, files=entries))
    _sweep(root, replace(kept, info=info, files=entries))
    for old in manifests_folder(root).glob(f"{manifest.info.id}@*.json"):
        if old.name != f"{manifest.info.id}@{commits.next_seq - 1}.json":
            files.remove_file(old)


def _sweep(root: Path, manifest: Manifest) -> bool:
    """Delete the folders of dropped arrays, and of groups that lost their last one; whether anything was left to do."""
    folder = episodes_folder(root) / manifest.info.id
    about = manifest.documents()["zarr.json"]
    stale = not (folder / "zarr.json").is_file() or (folder / "zarr.json").read_bytes() != about
    if stale:
        files.replace(folder / "zarr.json", about)
    kept = {parent for path in manifest.files for parent in Path(path).parents}
    gone = {next(p for p in (*reversed(Path(key).parents), Path(key)) if p not in kept) for key in manifest.dropped}
    left = [folder / path for path in gone if (folder / path).exists()]
    for path in left:
        files.remove_tree(path)
    return stale or bool(left)
