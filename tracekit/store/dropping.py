"""Giving disk space back: arrays that are no longer wanted leave a store for good."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from tracekit.store.places import commits_file, episodes_folder, manifests_folder
from tracekit.store.schema import stream_of
from tracekit.store.verifying import load_manifest

__all__ = ["Pruned", "prune_store", "sweep", "without"]


@dataclass(frozen=True, slots=True)
class Pruned:
    """What `prune_store` took away: the keys, from how many episodes, and the bytes that gave back.

    `kept`: keys that matched too, but stay because every step needs them.
    """

    path: str
    keys: tuple[str, ...]
    episodes: int
    nbytes: int
    kept: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def prune_store(path: str | Path, keys: Sequence[str], *, dry_run: bool = False) -> Pruned:
    """Delete the optional arrays and streams whose keys match one of `keys` (names, or patterns such as `hidden/*`).

    They leave every episode; readers see one with them or without them, never half: who opened it before and asks for
    one of them afterwards gets a TraceError that says so. Arrays that every step has (not
    `ArraySpec.optional`) stay, since nothing could replay the trace without them. With `dry_run`, only says what would
    go. Raises TraceError, with nothing deleted, if `path` is no store, if its metadata are damaged, if a writer is at
    work on it, if nothing that may go matches, or if one of `keys` is the name of an array that may not; and wherever
    the disk refuses.
    """
    root = Path(path)
    try:
        check_readable(root, writing=True)
        if not commits_file(root).is_file():
            raise TraceError(f"{root}: its journal is lost; run `tracekit repair` before pruning")
        held = lock.acquire(root)
        try:
            return _prune(root, keys, dry_run=dry_run)
        finally:
            lock.release(held)
    except OSError as error:
        raise TraceError(
            f"{error.filename or root}: pruning was stopped: {error.strerror}; mend the cause, or run "
            "`tracekit repair` on the trace, and prune again to go on"
        ) from error


def _prune(root: Path, patterns: Sequence[str], *, dry_run: bool) -> Pruned:
    journal = read_journal(root)
    records = journal.episodes()
    manifests = [m for record in records.values() if (m := load_manifest(root, record)) is not None]
    if journal.head is None or journal.bad_lines or len(manifests) < len(records):
        raise TraceError(f"{root}: its journal or a manifest is damaged; run `tracekit repair` before pruning")
    if not dry_run:
        finish_moves(root, journal)
    matching = {manifest.info.id: _matching(manifest, patterns) for manifest in manifests}
    going = {episode: keys for episode, (keys, _) in matching.items()}
    kept = sorted({key for _, needed in matching.values() for key in needed})
    names = sorted({key for keys in going.values() for key in keys})
    dropped = [manifest for manifest in manifests if manifest.dropped and not dry_run]
    swept = sum(sweep(root, manifest, files.remove_tree) for manifest in dropped) > 0
    if not names and not swept:
        there = {key for manifest in manifests for key in manifest.schema if _may_go(manifest, key)}
        parts = sorted({f"{part}/*" if rest else part for part, _, rest in (key.partition("/") for key in there)})
        raise TraceError(
            f"{root}: no array that may be dropped matches {', '.join(patterns)}; it has: {', '.join(parts) or 'none'}"
        )
    changed = [manifest for manifest in manifests if going[manifest.info.id]]
    freed = sum(_bytes_of(manifest, going[manifest.info.id]) for manifest in changed)
    if not dry_run:
        commits = Commits(root, journal)
        try:
            for manifest in changed:
                _drop(root, commits, manifest, going[manifest.info.id])
        finally:
            commits.close()
        for manifest in (*dropped, *changed):
            _forget_manifests(root, commits.episodes[manifest.info.id])
    return Pruned(str(root), tuple(names), len(changed), freed, tuple(kept))


def _matching(manifest: Manifest, patterns: Sequence[str]) -> tuple[list[str], list[str]]:
    """The keys that match and may go, and those that match but belong to every step."""
    matching = [key for key in manifest.schema if any(fnmatchcase(key, pattern) for pattern in patterns)]
    for key in matching:
        stream = stream_of(key)
        if stream is not None and sum(stream_of(other) == stream for other in matching) != len(("time_ns", "value")):
            raise TraceError(f"stream {stream!r}: its times and values go together; give `streams/{stream}/*`")
    needed = [key for key in matching if not _may_go(manifest, key)]
    named = [key for key in needed if key in patterns]
    if named:
        raise TraceError(
            f"{named[0]!r} belongs to every step of episode {manifest.info.id!r}: replays cannot do without; "
            "only optional arrays and streams can be dropped"
        )
    return [key for key in matching if _may_go(manifest, key)], needed


def _may_go(manifest: Manifest, key: str) -> bool:
    return manifest.schema[key].optional or stream_of(key) is not None


def _bytes_of(manifest: Manifest, keys: Sequence[str]) -> int:
    return sum(about.nbytes for path, about in manifest.files.items() if str(Path(path).parent) in keys)


def without(manifest: Manifest, keys: Sequence[str]) -> Manifest:
    """The manifest of the same episode without the arrays `keys`."""
    return replace(
        manifest,
        schema={key: spec for key, spec in manifest.schema.items() if key not in keys},
        rows={name: count for name, count in manifest.rows.items() if name not in keys},
        chunks={name: sizes for name, sizes in manifest.chunks.items() if name not in keys},
        files={path: about for path, about in manifest.files.items() if str(Path(path).parent) not in keys},
        dropped=tuple(sorted({*manifest.dropped, *keys})),
    ).with_documents()


def _drop(root: Path, commits: Commits, manifest: Manifest, keys: Sequence[str]) -> None:
    """Commit the episode without `keys`, then delete their folders; a crash in between leaves files nobody reads."""
    kept = without(manifest, keys)
    commit_manifest(root, commits, kept)
    sweep(root, kept, files.remove_tree)


def _forget_manifests(root: Path, record: Mapping[str, Any]) -> None:
    """Delete what earlier manifests of the episode are left."""
    for old in manifests_folder(root).glob(f"{record['info']['id']}@*.json"):
        if old.name != record["manifest"]["name"]:
            files.remove_file(old)


def sweep(root: Path, manifest: Manifest, remove: Callable[[Path], object]) -> bool:
    """`remove` the folders of dropped arrays, and of groups that lost their last one; whether anything was there.

    What is reached by a symbolic link only stays.
    """
    folder = episodes_folder(root) / manifest.info.id
    about = manifest.documents()["zarr.json"]
    stale = not (folder / "zarr.json").is_file() or (folder / "zarr.json").read_bytes() != about
    if stale:
        files.replace(folder / "zarr.json", about)
    kept = {parent for path in manifest.files for parent in Path(path).parents}
    gone = {next(p for p in (*reversed(Path(key).parents), Path(key)) if p not in kept) for key in manifest.dropped}
    home = root.resolve()
    there = [path for path in map(folder.joinpath, gone) if path.exists()]
    left = [path for path in there if path.resolve() == home / path.relative_to(root)]
    for path in left:
        remove(path)
    return stale or bool(left)
