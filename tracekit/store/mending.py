"""Mending one committed episode: its metadata, its indices, and, at the least cost to the rest, its damaged arrays."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tracekit.digest import digest_json
from tracekit.errors import TraceError, TracekitError
from tracekit.store import files
from tracekit.store.checksums import Checksum, checksum_of, summed
from tracekit.store.committing import commit_manifest, set_aside, set_copy_aside
from tracekit.store.dropping import sweep, without
from tracekit.store.identity import root_attributes
from tracekit.store.journal import Commits
from tracekit.store.manifest import Manifest
from tracekit.store.metadata import shard_name
from tracekit.store.places import episodes_folder, manifest_file, running_folder
from tracekit.store.salvage import keep_good_steps, make_parents
from tracekit.store.schema import EpisodeInfo
from tracekit.store.shards import cut_shard, index_bytes, leading_good, read_index, rescue_shard
from tracekit.store.verifying import damaged_files, load_manifest

__all__ = ["adopt_by_chunks", "mend_episode", "write_anew"]

_RESCUED = "rescued.tmp"
_NEVER = Checksum(0, 0, "no file has this SHA-256")


def mend_episode(root: Path, commits: Commits, record: Mapping[str, Any]) -> Iterator[str]:
    """Bring the episode that the journal line `record` commits to a state that `verify` finds clean; says how.

    Raises OSError; every step leaves an episode that can be mended again.
    """
    episode = record["info"]["id"]
    folder = episodes_folder(root) / episode
    manifest = load_manifest(root, record)
    places = {folder} if manifest is None else {folder / p for path in manifest.files for p in Path(path).parents}
    for place in sorted(places):
        if os.path.lexists(place) and not place.is_dir():
            set_aside(root, place, _flat_name(root, place))
            yield f"{place.relative_to(root)}: was no folder; set aside"
    if manifest is None:
        manifest = _rebuilt_manifest(folder, record)
        if manifest is None:
            adopted = adopt_by_chunks(root, commits, episode)
            yield from adopted or [_remove(root, commits, episode, "its manifest is lost")]
            return
        yield write_anew(root, manifest_file(root, record["manifest"]["name"]), manifest.seal())
    _take_rescued(folder, manifest)
    damaged = []
    documents = manifest.documents()
    for problem in list(damaged_files(root, folder, manifest.files, episode)):
        name = str((root / problem.path).relative_to(folder))
        if name in documents and manifest.files[name].fits(checksum_of(documents[name])):
            make_parents(folder, name)
            yield write_anew(root, folder / name, documents[name])
        else:
            damaged.append(name)
    if damaged:
        yield from _mend_shards(root, commits, folder, manifest, damaged)
    elif manifest.dropped and folder.is_dir():
        _set_dropped_aside(root, manifest)


def adopt_by_chunks(root: Path, commits: Commits, episode: str) -> list[str] | None:
    """Commit a folder in `episodes/` that only its own group attributes and its own checksums vouch for.

    Those are the SHA-256 of its shards; of what version 1.0 wrote, the CRC32C of its chunks. Says what it did; None,
    with nothing changed, if the attributes are damaged or are those of another episode. Raises OSError.
    """
    folder = episodes_folder(root) / episode
    attributes = root_attributes(folder)
    digest = attributes.pop("digest", None)
    if digest is not None and digest != digest_json(attributes):
        return None
    try:
        said = Manifest.from_json(attributes)
        said.documents()
        strong = {} if digest is None else attributes["sha256"]
        arrays, rows = said.arrays(), dict(said.rows)
        chunks, listed = {}, {}
        for name, spec in arrays.items():
            path = folder / name / shard_name(spec)
            sizes = read_index(path, rows[name]) if spec.codec or spec.optional else said.sizes(name)
            whole = sizes is not None and leading_good(path, sizes) == len(sizes)
            kept = sizes if sizes is not None else [0] * rows[name]
            if spec.codec or spec.optional:
                chunks[name] = kept
            if any(kept) or sizes is None:
                end, index = sum(kept), index_bytes(kept)
                ideal = summed(path, end).update(index).result() if whole else _NEVER
                listed[f"{name}/{path.name}"] = replace(ideal, sha256=strong.get(f"{name}/{path.name}", ideal.sha256))
    except (AttributeError, KeyError, TypeError, ValueError, TracekitError):
        return None
    if said.info.id != episode or type(said.info.steps) is not int or any(type(key) is not str for key in said.dropped):
        return None
    commit_manifest(root, commits, replace(said, chunks=chunks, files=listed).with_documents())
    done = [f"episode {episode!r}: only the checksums of its own chunks vouch for it; committed again by those"]
    return done + list(mend_episode(root, commits, commits.episodes[episode]))


def write_anew(root: Path, path: Path, data: bytes) -> str:
    """Make `data` the contents of `path`; what is there is set aside. Says so. Raises OSError."""
    if path.exists():
        set_aside(root, path, _flat_name(root, path))
    files.replace(path, data)
    return f"{path.relative_to(root)}: made anew"


def _mend_shards(
    root: Path, commits: Commits, folder: Path, manifest: Manifest, damaged: Sequence[str]
) -> Iterator[str]:
    """Write damaged indices anew; take bad steps out of optional arrays; cut the episode where it cannot do without."""
    info, arrays = manifest.info, manifest.arrays()
    by_path = {f"{name}/{shard_name(spec)}": name for name, spec in arrays.items()}
    left = [
        path
        for path in damaged
        if path not in by_path
        or not _mend_index(root, folder / path, manifest.sizes(by_path[path]), manifest.files[path])
    ]
    if not left:
        yield f"episode {info.id!r}: index made anew"
        return
    optional = [by_path[path] for path in left if path in by_path and arrays[by_path[path]].optional]
    if optional:
        manifest = yield from _rescue(root, commits, folder, manifest, optional)
    left = [path for path in left if by_path.get(path) not in optional]
    if not left:
        return
    files.remove_tree(running_folder(root) / info.id)  # copies, left by a repair that was interrupted here
    sizes = {name: manifest.sizes(name) for name in manifest.arrays()}
    foreign = {by_path[path] for path in left if path in by_path and _is_whole(folder / path, sizes[by_path[path]])}
    steps = keep_good_steps(root, commits, info, manifest.schema, folder, sizes, foreign)
    if steps is None:
        yield _remove(root, commits, info.id, "nothing of it is as it was recorded")
    else:
        yield f"episode {info.id!r}: damaged; {steps} of its {info.steps} steps are kept, the original is set aside"


def _is_whole(path: Path, sizes: Sequence[int]) -> bool:
    return leading_good(path, sizes) == len(sizes)


def _mend_index(root: Path, path: Path, sizes: Sequence[int], listed: Checksum) -> bool:
    """Write the index of a shard anew, if nothing but it is damaged."""
    index = index_bytes(sizes)
    end = sum(sizes)
    if not path.is_file() or not listed.fits(summed(path, end).update(index).result()):
        return False
    set_copy_aside(root, path.read_bytes()[end:], f"{_flat_name(root, path)}-index")
    whole = path.with_name("index.tmp")
    files.remove_file(whole)
    cut_shard(path, whole, sizes)
    files.rename(whole, path)
    files.sync_folder(path.parent)
    return True


def _rescue(
    root: Path, commits: Commits, folder: Path, manifest: Manifest, names: Sequence[str]
) -> Generator[str, None, Manifest]:
    """Commit the episode with the good steps of the optional arrays `names` only; the damaged shards are set aside.

    An array without a good step leaves the episode. Returns the manifest of the episode as it then is.
    """
    chunks, listed, lost, rescued = dict(manifest.chunks), dict(manifest.files), [], []
    for name in names:
        path = f"{name}/{shard_name(manifest.arrays()[name])}"
        found = _rescued(folder / path, manifest.sizes(name))
        if found is None:
            lost.append(name)
        else:
            chunks[name], listed[path] = found
            rescued.append(folder / path)
    kept = without(replace(manifest, chunks=chunks, files=listed), lost)
    commit_manifest(root, commits, kept)
    for shard in rescued:
        set_aside(root, shard, _flat_name(root, shard))
        files.rename(shard.with_name(_RESCUED), shard)
        files.sync_folder(shard.parent)
    _set_dropped_aside(root, kept)
    for name in names:
        before = sum(size > 0 for size in manifest.sizes(name))
        after = 0 if name in lost else sum(size > 0 for size in kept.sizes(name))
        yield f"episode {kept.info.id!r}: {name!r} is damaged; {after} of its {before} steps are kept, it is set aside"
    return kept


def _rescued(shard: Path, sizes: Sequence[int]) -> tuple[list[int], Checksum] | None:
    """Write the good chunks of an optional array beside its shard; None if it has none, or is not of this episode."""
    if not shard.is_file():
        return None
    own = read_index(shard, len(sizes))  # says where the chunks are, also after an interrupted rescue
    spans = sizes if own is None else own
    if _is_whole(shard, spans) or any(span not in {0, size} for span, size in zip(spans, sizes, strict=True) if size):
        return None
    target = shard.with_name(_RESCUED)
    files.remove_file(target)
    kept, checksum = rescue_shard(shard, target, spans)
    if any(kept):
        return kept, checksum
    files.remove_file(target)
    return None


def _take_rescued(folder: Path, manifest: Manifest) -> None:
    """Go on with a rescue that was interrupted after its commit, and forget one that was interrupted before."""
    for path, listed in manifest.files.items():
        rescued = (folder / path).with_name(_RESCUED)
        if not rescued.is_file():
            continue
        if not (folder / path).exists() and listed.fits(summed(rescued).result()):
            files.rename(rescued, folder / path)
            files.sync_folder(rescued.parent)
        else:
            files.remove_file(rescued)


def _set_dropped_aside(root: Path, manifest: Manifest) -> None:
    sweep(root, manifest, lambda path: set_aside(root, path, _flat_name(root, path)))


def _rebuilt_manifest(folder: Path, record: Mapping[str, Any]) -> Manifest | None:
    """The manifest from the group attributes and the files as they are, if that is exactly what was committed."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    chunks: dict[str, Sequence[int]] = {}
    try:
        said = Manifest.from_json(root_attributes(folder))
        for name, spec in said.arrays().items():
            path = found.get(f"{name}/{shard_name(spec)}")
            if path is not None and (spec.codec or spec.optional):
                chunks[name] = read_index(path, said.rows[name]) or []
    except (AttributeError, KeyError, TypeError, ValueError, TraceError):  # the group attributes are damaged too
        return None
    listed = Manifest.checksum_in(record)
    entries = {name: summed(path).result() for name, path in found.items()}
    if listed.sha256 is None:
        entries = {name: replace(checksum, sha256=None) for name, checksum in entries.items()}
    info = EpisodeInfo.from_json(record["info"])
    rebuilt = replace(said, info=info, chunks=chunks, files=entries, seq=record["seq"])
    return rebuilt if listed.fits(checksum_of(rebuilt.seal())) else None


def _remove(root: Path, commits: Commits, episode: str, why: str) -> str:
    commits.append({"kind": "removed", "id": episode})
    if (episodes_folder(root) / episode).exists():
        set_aside(root, episodes_folder(root) / episode, episode)
    return f"episode {episode!r}: {why}; set aside"


def _flat_name(root: Path, path: Path) -> str:
    return "-".join(path.relative_to(root).parts)
