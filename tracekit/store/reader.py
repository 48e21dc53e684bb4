"""Reading a trace. What is returned was checked on the way from the disk: journal line, manifest, metadata, chunks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tracekit.digest import digest_json
from tracekit.errors import TraceError
from tracekit.store import lock
from tracekit.store.checksums import Checksum, checksum_of, summed
from tracekit.store.identity import TRACE_FORMAT, check_identity, open_journal
from tracekit.store.journal import newest_record
from tracekit.store.manifest import Manifest
from tracekit.store.metadata import shard_name
from tracekit.store.places import episodes_folder, manifest_file, running_episodes, running_folder
from tracekit.store.schema import ArraySpec, EpisodeInfo, rows_axis
from tracekit.store.shards import ShardReader

__all__ = ["Episode", "Trace", "folder_of"]

_MOVE_TRIES = 100


class Trace:
    """The committed episodes of a store, as they were when it was opened; made by `Trace.open`."""

    def __init__(self, path: Path, head: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]) -> None:
        """Use `Trace.open`."""
        self.path = path
        self.format: str = head["format"]
        self.version: str = head["version"]
        self.attributes: Mapping[str, Any] = head["attributes"]
        self._records = records
        self.episodes: tuple[EpisodeInfo, ...] = tuple(EpisodeInfo.from_json(r["info"]) for r in records.values())
        """Every committed episode, in the order in which they were committed."""

    @classmethod
    def open(cls, path: str | Path, format: str = TRACE_FORMAT) -> Self:  # noqa: A002 - as the attribute
        """The store at `path`, which another process may be writing.

        Reads the journal only. Raises TraceError for a path that is no store of this format (saying what it is), for an
        unknown major version, and for a damaged journal.
        """
        root = Path(path)
        try:
            head = check_identity(root, format)
            return cls(root, head, open_journal(root, format).episodes())
        except OSError as error:
            raise TraceError(
                f"{root}: cannot be read: {error.strerror}; check its rights, or run `tracekit verify`"
            ) from error

    @property
    def nbytes(self) -> int:
        """Bytes of all committed episodes on the disk."""
        return sum(info.nbytes for info in self.episodes)

    @property
    def unfinished(self) -> frozenset[str]:
        """Ids of episodes that were started and not committed: one that is being recorded, or was killed."""
        return frozenset(running_episodes(self.path) - self._records.keys())

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over all that the trace says: its attributes and every episode, down to the last array.

        Reads the journal only, which has the SHA-256 of the manifests, which have those of the files; but all files of
        the episodes that version 1.0 committed. Raises TraceError if one of those cannot be read.
        """
        episodes = [[record["info"], self._digest_of(name, record)] for name, record in self._records.items()]
        return digest_json([self.attributes, episodes])

    def _digest_of(self, name: str, record: Mapping[str, Any]) -> Any:
        strong = Manifest.checksum_in(record).sha256
        return self.episode(name).files_digest() if strong is None else strong

    def episode(self, name: str) -> Episode:
        """The episode whose id is `name`, as it is now if the store was pruned since it was opened.

        Raises TraceError if there is none, or if its manifest is damaged.
        """
        if name not in self._records:
            near = get_close_matches(name, self._records, 3) or list(self._records)[:3]
            others = f"it has {len(self._records)}, such as {', '.join(near)}" if near else "it has none"
            raise TraceError(f"{self.path}: no episode {name!r}; {others}")
        record = self._records[name]
        while True:
            try:
                return Episode(self.path, record)
            except TraceError:
                newest = newest_record(self.path, name)
                if newest is None or newest == record:
                    raise
                if _without_size(newest) != _without_size(record):
                    raise _changed(self.path) from None
                record = newest


class Episode:
    """One committed episode. Arrays are read when asked for; `read` returns (steps, …), fresh and writable."""

    def __init__(self, root: Path, record: Mapping[str, Any]) -> None:
        """Use `Trace.episode`."""
        self.info = EpisodeInfo.from_json(record["info"])
        self._root = root
        self._record = record
        path = manifest_file(root, record["manifest"]["name"])
        manifest = Manifest.unsealed(_checked(path, Manifest.checksum_in(record)))
        if manifest is None or manifest.info.id != self.info.id:
            raise _damaged(path, "is damaged")
        self._manifest = manifest
        self._places = self._manifest.places()
        self._arrays = self._manifest.arrays()
        self._folder = folder_of(root, self.info.id)
        self._shards: dict[str, ShardReader] = {}
        self._tables: dict[str, npt.NDArray[Any]] = {}

    def keys(self) -> tuple[str, ...]:
        """Every key of the episode, sorted."""
        return tuple(sorted(self._places))

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def spec(self, key: str) -> ArraySpec:
        """What `key` is (per step); raises TraceError if the episode lacks it."""
        self._place(key)
        return self._manifest.schema[key]

    def present(self, key: str) -> npt.NDArray[np.bool_]:
        """(steps,) which steps have `key`: all, unless it is optional (and not of size 0, which leaves no sign)."""
        name, _ = self._place(key)
        if not self._arrays[name].optional or not self._arrays[name].row_nbytes:
            return np.ones(self._manifest.rows[name], np.bool_)
        return self._shard(name).present

    def read(self, key: str, step: int | None = None) -> npt.NDArray[Any]:
        """All steps of `key`, (steps, …), or one step (…), counted from 0. bfloat16 comes as its uint16 bits.

        Absent steps of an optional key read as NaN (0 for integers, False for booleans) unless asked for by number.
        Raises TraceError if the episode lacks the key or the step, or if what is stored is not what was written.
        """
        name, column = self._place(key)
        count, axis = self._manifest.rows[name], rows_axis(name)
        if step is not None and not 0 <= step < count:
            raise TraceError(
                f"{self._root}: {key!r} of episode {self.info.id!r} has {count} {axis}s, "
                f"there is no {axis} {step}; they count from 0"
            )
        if column is not None:
            if name not in self._tables:
                self._tables[name] = self._read_rows(name, None)
            values = self._tables[name][:, column]
            return np.array(values if step is None else values[step])
        if step is None:
            return self._read_rows(name, None)
        return np.asarray(self._read_rows(name, step)[0, ...])

    def files_digest(self) -> str:
        """SHA-256 (hex) over the contents of all files, which are read for it; raises TraceError if one cannot be."""
        try:
            found = {name: summed(self._folder / name).result().sha256 for name in self._manifest.files}
        except OSError as error:
            self._check_unchanged()
            raise _damaged(Path(error.filename), f"cannot be read ({error.strerror})") from error
        return digest_json(found)

    def _read_rows(self, name: str, step: int | None) -> npt.NDArray[Any]:
        spec = self._arrays[name]
        rows = np.arange(self._manifest.rows[name]) if step is None else np.array([step])
        if not spec.row_nbytes or not len(rows):
            return np.empty((len(rows), *spec.shape), spec.storage)
        shard = self._shard(name)
        present = shard.present[rows]
        if present.all():
            out = np.empty((len(rows), *spec.shape), spec.storage)
            self._read_shard(shard, rows, out)
            return out
        if step is not None:
            raise TraceError(f"{self._root}: step {step} of episode {self.info.id!r} has no {name!r}; see present()")
        found = np.empty((int(present.sum()), *spec.shape), spec.storage)
        self._read_shard(shard, rows[present], found)
        out = np.full((len(rows), *spec.shape), spec.fill, spec.storage)
        out[present] = found
        return out

    def _read_shard(self, shard: ShardReader, rows: npt.NDArray[np.int64], out: npt.NDArray[Any]) -> None:
        try:
            shard.read(rows, out)
        except TraceError:
            self._check_unchanged()
            raise

    def _check_unchanged(self) -> None:
        if newest_record(self._root, self.info.id) not in (None, self._record):
            raise _changed(self._root)

    def _place(self, key: str) -> tuple[str, int | None]:
        if key not in self._places:
            parts = sorted({other.partition("/")[0] for other in self._places})
            near = get_close_matches(key, self._places, 1)
            raise TraceError(
                f"{self._root}: the trace lacks {key!r} in episode {self.info.id!r}{self._gone(key)}"
                f"{f' (did you mean {near[0]!r}?)' if near else ''}; it has the parts {', '.join(parts) or 'none'}; "
                f"{self._remedy(key)}"
            )
        return self._places[key]

    def _remedy(self, key: str) -> str:
        if key in self._manifest.dropped:
            return "use a copy that has it"
        part = key.partition("/")[0]
        optional = {"observables", "scores", "hidden", "attention"}
        return "record again with a capture that keeps it" if part in optional else "record again"

    def _gone(self, key: str) -> str:
        return " (taken away by prune-store, or by repair as damaged)" if key in self._manifest.dropped else ""

    def _shard(self, name: str) -> ShardReader:
        if name not in self._shards:
            spec = self._arrays[name]
            path = self._folder / name / shard_name(spec)
            self._shards[name] = ShardReader(path, spec, self._manifest.sizes(name))
        return self._shards[name]


def folder_of(root: Path, episode: str) -> Path:
    """The episode's folder: the final one, or, if a crash came between commit and move, the running one."""
    final = episodes_folder(root) / episode
    for _ in range(_MOVE_TRIES):
        if final.is_dir() or not lock.is_held(root):
            break
        time.sleep(0.01)  # a live writer moves it within milliseconds of the commit
    return final if final.is_dir() else running_folder(root) / episode


def _checked(path: Path, listed: Checksum) -> bytes:
    """The contents of a small file, if they are exactly what was committed; raises TraceError if not."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error.strerror})") from error
    if not listed.fits(checksum_of(data)):
        raise _damaged(path, "is damaged")
    return data


def _without_size(record: Mapping[str, Any]) -> EpisodeInfo:
    """What a journal line says of its episode and pruning leaves as it is."""
    return replace(EpisodeInfo.from_json(record["info"]), nbytes=0)


def _changed(root: Path) -> TraceError:
    return TraceError(f"{root}: the store was pruned meanwhile, or repaired; open it again")


def _damaged(path: Path, what: str) -> TraceError:
    return TraceError(f"{path} {what}; run `tracekit verify` and `tracekit repair` on the trace")
