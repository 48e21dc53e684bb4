"""One episode as a transaction: its steps go to shards in the running folder; committing seals and moves them.

Every step is one write per array and one line in the step log, straight to the operating system: a killed process loses
only the step it was writing. `flush` makes them safe from a power cut; it runs by itself every 16 steps or every second
of recording, whichever is first, because one fsync per array and step would cost more than the data.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tracekit.digest import canonical_json
from tracekit.errors import TraceError
from tracekit.store import files
from tracekit.store.committing import Shard, commit
from tracekit.store.journal import Commits
from tracekit.store.metadata import shard_name
from tracekit.store.places import running_folder, steps_log
from tracekit.store.schema import ArraySpec, EpisodeInfo, stream_of
from tracekit.store.sealed import seal
from tracekit.store.shards import ShardWriter
from tracekit.store.tables import stored_arrays, tables_of

__all__ = ["EpisodeWriter"]

_FLUSH_STEPS = 16
_FLUSH_SECONDS = 1.0


class EpisodeWriter:
    """Made by `TraceWriter.episode`. Not for several threads at once."""

    def __init__(self, root: Path, commits: Commits, info: EpisodeInfo, schema: Mapping[str, ArraySpec]) -> None:
        """Start the episode on disk. Raises OSError."""
        self._root = root
        self._commits = commits
        self._info = info
        self._schema = dict(schema)
        self._folder = running_folder(root) / info.id
        self._tables = tables_of(schema)
        self._stored = stored_arrays(schema)
        self._shards: dict[str, ShardWriter] = {}
        self._rows = dict.fromkeys(self._stored, 0)
        self._given: set[str] = set()
        self._new_folders: set[Path] = set()
        self._since_flush = 0
        self._flushed_at = time.monotonic()
        self._state = "open"
        self._process = os.getpid()
        self.steps = 0
        """Steps appended so far."""

        self._log = files.create(steps_log(root, info.id))
        try:
            header = {"info": info.to_json(), "schema": [[key, spec.to_json()] for key, spec in schema.items()]}
            files.write(self._log, [seal(header)])
            self._make_folder(self._folder)
        except OSError:
            self._discard()
            raise

    def append(self, step: Mapping[str, npt.ArrayLike]) -> None:
        """Add one control step: every key of the schema but optional ones and streams, each of its shape and dtype.

        Raises TraceError, with nothing written, for a key that is missing, unknown or does not fit; and where the disk
        refuses, after which the episode can only be repaired.
        """
        self._check_open()
        rows = self._rows_of_step(step)
        self._state = "interrupted"
        try:
            sizes = {}
            for name, spec in self._stored.items():
                if stream_of(name) is None:
                    row = self._table_row(name, rows) if name in self._tables else rows.get(name)
                    sizes[name] = self._append_row(name, spec, row)
            files.write(self._log, [seal({"step": self.steps, "sizes": list(sizes.values())})])
            self.steps += 1
            self._since_flush += 1
            self._flush_if_due()
        except OSError as error:
            raise self._failed(f"step {self.steps}", error) from error
        self._state = "open"

    def append_stream(self, name: str, time_ns: npt.NDArray[np.int64], value: npt.NDArray[Any]) -> None:
        """Add n samples to `streams/<name>`: time stamps (n,) int64 and values (n, …), in the order of measurement.

        Raises TraceError, with nothing written, if the stream is not in the schema or the arrays do not fit.
        """
        self._check_open()
        parts = {f"streams/{name}/time_ns": np.asarray(time_ns), f"streams/{name}/value": np.asarray(value)}
        count = len(parts[f"streams/{name}/time_ns"])
        rows: dict[str, list[npt.NDArray[Any]]] = {}
        for key, samples in parts.items():
            if key not in self._schema:
                raise TraceError(f"episode {self._info.id!r}: no stream {name!r} in the schema; add {key!r} to it")
            if len(samples) != count:
                raise TraceError(f"episode {self._info.id!r}: stream {name!r} got {count} times, {len(samples)} values")
            rows[key] = [self._fitting_row(key, sample) for sample in samples]
        self._state = "interrupted"
        try:
            for key, samples_of_key in rows.items():
                for row in samples_of_key:
                    self._append_row(key, self._schema[key], row)
            files.write(self._log, [seal({"stream": name, "samples": self._rows[f"streams/{name}/value"]})])
            self._flush_if_due()
        except OSError as error:
            raise self._failed(f"stream {name!r}", error) from error
        self._state = "open"

    def flush(self) -> None:
        """Return when everything appended so far would survive a power cut. Raises TraceError if the disk refuses."""
        self._check_open()
        try:
            self._flush()
        except OSError as error:
            raise self._failed("flushing", error) from error

    @property
    def is_open(self) -> bool:
        """Whether steps can be appended and the episode can be finished."""
        return self._state == "open"

    def leave(self) -> None:
        """Close the files of an episode that cannot be finished, and leave it to `repair` as it is."""
        self._close_files()
        if self._state in {"open", "interrupted"}:
            self._state = "cut off"

    def finish(
        self, success: bool | None = None, attributes: Mapping[str, Any] | None = None, *, truncated: bool = False
    ) -> None:
        """Commit the episode: when this returns it is whole, on the disk and visible. Nothing can be added after it.

        `attributes` are added to those of the `EpisodeInfo`. `truncated`: it was cut off. Raises TraceError if the disk
        refuses, or if an attribute is no plain value (the episode then stays open).
        """
        self._check_open()
        merged = {**self._info.attributes, **(attributes or {})}
        canonical_json(merged)  # refuses what is no plain value before anything is closed
        cut_off = truncated or self._info.truncated  # a copy of what was cut off still is
        info = replace(self._info, steps=self.steps, success=success, attributes=merged, truncated=cut_off)
        self._state = "cut off"  # from here on it may be committed: it must not be discarded
        try:
            for shard in self._shards.values():
                shard.finish()
            self._sync_new_folders()
            commit(self._root, self._commits, info, self._schema, self._finished_shards())
        except OSError as error:
            raise self._failed("committing", error) from error
        self._close_files()
        self._state = "committed"

    @property
    def closed(self) -> bool:
        """Whether the episode has no open file any more."""
        return self._log < 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit (success unknown) if that was not done; after an exception, discard the episode.

        An episode that the disk refused, or whose writer was closed, is kept for `repair` instead; in a forked child
        nothing happens.
        """
        if self._process != os.getpid():
            return
        if self._state == "open" and kind is None:
            self.finish()
        self._close_files()
        if self._state in {"open", "interrupted"} and kind is not None:
            self._discard()

    def _discard(self) -> None:
        self._close_files()
        files.remove_tree(self._folder)
        files.remove_file(steps_log(self._root, self._info.id))
        self._state = "discarded"

    def _rows_of_step(self, step: Mapping[str, npt.ArrayLike]) -> dict[str, npt.NDArray[Any]]:
        where = f"step {self.steps} of episode {self._info.id!r}"
        unknown = step.keys() - self._schema.keys()
        if unknown:
            raise TraceError(f"{where}: {min(unknown)!r} is not in the schema; add it there or leave it out")
        for key, spec in self._schema.items():
            if stream_of(key) is not None:
                if key in step:
                    raise TraceError(f"{where}: {key!r} runs at its own rate; add it with append_stream")
            elif key not in step and not spec.optional:
                raise TraceError(f"{where} lacks {key!r}; give it, or mark it optional in the schema")
        return {key: self._fitting_row(key, value) for key, value in step.items()}

    def _fitting_row(self, key: str, value: npt.ArrayLike) -> npt.NDArray[Any]:
        spec = self._schema[key]
        row = spec.row(value)
        if row is None:
            given = f"{value!r}" if isinstance(value, bool | int | float) else f"{np.asarray(value).dtype}"
            raise TraceError(
                f"step {self.steps} of episode {self._info.id!r}: {key!r} is {given} of shape {np.shape(value)}, "
                f"the schema says {spec.dtype} of shape {spec.shape}; convert it before appending"
            )
        return row

    def _table_row(self, name: str, rows: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
        return np.stack([rows[key] for key in self._tables[name]])

    def _append_row(self, name: str, spec: ArraySpec, row: npt.NDArray[Any] | None) -> int:
        """Bytes written, 0 for an absent row."""
        self._rows[name] += 1
        if row is not None:
            self._given.add(name)
        shard = self._shards.get(name)
        if row is None or not spec.row_nbytes:
            if shard is not None:
                shard.skip()
            return 0
        if shard is None:
            self._make_folder(self._folder / name)
            shard = self._shards[name] = ShardWriter(self._folder / name / shard_name(spec), spec)
            shard.skip(self._rows[name] - 1)
        return shard.append(row)

    def _make_folder(self, folder: Path) -> None:
        """Create `folder` and its parents below the running folder, to be synced with the next flush."""
        if folder == running_folder(self._root):
            return
        self._make_folder(folder.parent)
        if folder not in self._new_folders and not folder.exists():
            files.make_folder(folder)
        self._new_folders |= {folder, folder.parent}

    def _flush_if_due(self) -> None:
        elapsed = time.monotonic() - self._flushed_at
        if self._since_flush >= _FLUSH_STEPS or not 0 <= elapsed < _FLUSH_SECONDS:
            self._flush()

    def _flush(self) -> None:
        for shard in self._shards.values():
            shard.sync()
        self._sync_new_folders()
        files.sync(self._log)
        self._since_flush = 0
        self._flushed_at = time.monotonic()

    def _sync_new_folders(self) -> None:
        for folder in sorted(self._new_folders, reverse=True):
            files.sync_folder(folder)
        self._new_folders.clear()

    def _finished_shards(self) -> dict[str, Shard]:
        """Every stored array but the optional ones that no step had."""
        found = {}
        for name, spec in self._stored.items():
            shard = self._shards.get(name)
            if shard is not None:
                found[name] = Shard(shard.sizes, shard.checksum)
            elif not spec.optional or name in self._given:  # an array of no bytes needs no shard
                found[name] = Shard([0] * self._rows[name])
        return found

    def _check_open(self) -> None:
        if self._process != os.getpid():
            raise TraceError(
                f"episode {self._info.id!r} is written by process {self._process}, which forked this one; "
                "make a new trace here"
            )
        if self._state != "open":
            raise TraceError(f"episode {self._info.id!r} is {self._state}; start a new episode to record more")

    def _failed(self, doing: str, error: OSError) -> TraceError:
        self._close_files()
        self._state = "cut off"
        return TraceError(
            f"{self._root}: {doing} of episode {self._info.id!r} failed: {error.strerror}; what came before is kept: "
            "mend the cause, then run `tracekit repair` on the trace"
        )

    def _close_files(self) -> None:
        for shard in self._shards.values():
            shard.close()
        if self._log >= 0:
            files.close(self._log)
            self._log = -1
