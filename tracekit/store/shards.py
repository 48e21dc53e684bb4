"""One shard file: chunks of one step each, appended in order, closed by the index that zarr's sharding codec defines.

A chunk is the row's bytes (compressed or not) and their CRC32C (4 bytes, little-endian). The index holds (offset,
bytes) as two uint64 per step, all ones for a step without a chunk, and ends in its own CRC32C.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs.zstd import Zstd

from tracekit.errors import TraceError
from tracekit.store import files
from tracekit.store.checksums import Checksum, Summing
from tracekit.store.schema import CODECS, ArraySpec

__all__ = [
    "CRC_BYTES",
    "ShardReader",
    "ShardWriter",
    "chunk_index",
    "cut_shard",
    "index_bytes",
    "leading_good",
    "read_index",
    "rescue_shard",
]

ABSENT = np.uint64(2**64 - 1)
CRC_BYTES = 4
_ROWS_PER_CALL = 500
_BYTES_PER_CALL = 2**21
_COPY_BYTES = 2**23


class ShardWriter:
    """Appends rows to a new shard file at `path`. All methods raise OSError as the disk does."""

    def __init__(self, path: Path, spec: ArraySpec) -> None:
        """Create the file; it must not exist."""
        self.path = path
        self.sizes: list[int] = []
        self._summing = Summing()
        self._compress = None if spec.codec is None else Zstd(CODECS[spec.codec]).encode
        self._descriptor = files.create(path)
        self._dirty = True

    def skip(self, rows: int = 1) -> None:
        """Leave `rows` steps without a chunk."""
        self.sizes += [0] * rows

    def append(self, row: npt.NDArray[Any]) -> int:
        """Write one row (C order, little-endian); returns the bytes its chunk takes."""
        data: Any = row.reshape(-1).view(np.uint8)
        if self._compress is not None:
            data = self._compress(data)
        seal = int(google_crc32c.value(data)).to_bytes(CRC_BYTES, "little")
        self._write(data, seal)
        self.sizes.append(len(data) + CRC_BYTES)
        return self.sizes[-1]

    def sync(self) -> None:
        """Return when all rows so far are on the disk."""
        if self._dirty:
            files.sync(self._descriptor)
            self._dirty = False

    @property
    def checksum(self) -> Checksum:
        """Of the file as it stands."""
        return self._summing.result()

    def finish(self) -> None:
        """Write the index, sync and close."""
        self._write(index_bytes(self.sizes))
        self.sync()
        self.close()

    def close(self) -> None:
        """Release the file."""
        if self._descriptor >= 0:
            files.close(self._descriptor)
            self._descriptor = -1

    def _write(self, *parts: Any) -> None:
        self._dirty = True
        files.write(self._descriptor, parts)
        for part in parts:
            self._summing.update(part)


def chunk_index(sizes: Sequence[int]) -> npt.NDArray[np.uint64]:
    """(steps, 2) offset and bytes of the chunks that take `sizes` bytes one after the other, 0 where there is none."""
    spans = np.array(sizes, np.uint64)
    index = np.stack([np.cumsum(spans) - spans, spans], axis=1)
    index[spans == 0] = ABSENT
    return index


def index_bytes(sizes: Sequence[int]) -> bytes:
    """The index that closes a shard of chunks of `sizes`, with its CRC32C."""
    data = chunk_index(sizes).astype("<u8", copy=False).tobytes()
    return data + int(google_crc32c.value(data)).to_bytes(CRC_BYTES, "little")


def read_index(path: Path, rows: int) -> list[int] | None:
    """The chunk sizes that the index of the shard `path` of `rows` steps says, None if it is damaged or missing."""
    length = 16 * rows + CRC_BYTES
    if not path.is_file() or path.stat().st_size < length:
        return None
    with path.open("rb") as file:
        file.seek(-length, os.SEEK_END)
        data = file.read()
    if google_crc32c.value(data[:-CRC_BYTES]) != int.from_bytes(data[-CRC_BYTES:], "little"):
        return None
    return [0 if size == ABSENT else int(size) for size in np.frombuffer(data[:-CRC_BYTES], "<u8")[1::2]]


class ShardReader:
    """Reads rows of the shard `path`, whose chunks have `sizes`; every chunk is checked before it is returned.

    Raises TraceError, naming the file and the step, for a file that is missing, cut short or altered.
    """

    def __init__(self, path: Path, spec: ArraySpec, sizes: Sequence[int]) -> None:
        """Open nothing yet."""
        self._path = path
        self._raw = spec.codec is None
        self._index = chunk_index(sizes).astype(np.int64)

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """(steps,) whether the step has a chunk."""
        return np.asarray(self._index[:, 0] >= 0)

    def read(self, rows: npt.NDArray[np.int64], out: npt.NDArray[Any]) -> None:
        """Fill `out[i]` ((n, …) of the stored dtype, C order) with row `rows[i]`; every row must be present."""
        flat = out.reshape(len(rows), -1).view(np.uint8)
        spans = self._index[rows]
        try:
            with self._path.open("rb", buffering=0) as file:
                if self._raw:
                    self._read_raw(file.fileno(), rows, spans, flat)
                else:
                    for i, row in enumerate(rows):
                        chunk = os.pread(file.fileno(), int(spans[i, 1]), int(spans[i, 0]))
                        self._check(chunk[:-CRC_BYTES], chunk[-CRC_BYTES:], int(row))
                        flat[i] = self._expand(chunk[:-CRC_BYTES], flat.shape[1], int(row))
        except OSError as error:
            raise self._damaged(f"cannot be read ({error.strerror})") from error

    def _read_raw(
        self,
        descriptor: int,
        rows: npt.NDArray[np.int64],
        spans: npt.NDArray[np.int64],
        flat: npt.NDArray[np.uint8],
    ) -> None:
        """Rows straight into place, many per call where they follow each other on the disk."""
        stride = flat.shape[1] + CRC_BYTES
        seals = np.empty((len(rows), CRC_BYTES), np.uint8)
        limit = max(1, min(_ROWS_PER_CALL, _BYTES_PER_CALL // stride))
        breaks = np.flatnonzero(np.diff(spans[:, 0]) != stride) + 1
        for run in np.split(np.arange(len(rows)), breaks):
            for start in range(0, len(run), limit):
                part = run[start : start + limit]
                buffers = [buffer for i in part for buffer in (flat[i], seals[i])]
                if os.preadv(descriptor, buffers, int(spans[part[0], 0])) != stride * len(part):
                    raise self._damaged("is cut short")
                for i in part:  # at once, while the rows are in the processor's cache
                    self._check(flat[i], seals[i].tobytes(), int(rows[i]))

    def _check(self, data: Any, seal: bytes, row: int) -> None:
        if google_crc32c.value(data) != int.from_bytes(seal, "little"):
            raise self._damaged(f"is damaged at step {row}")

    def _expand(self, data: bytes, length: int, row: int) -> npt.NDArray[np.uint8]:
        try:
            expanded = np.frombuffer(Zstd().decode(data), np.uint8)
        except RuntimeError as error:  # numcodecs' only error for a frame that cannot be decoded
            raise self._damaged(f"cannot be decompressed at step {row}") from error
        if len(expanded) != length:
            raise self._damaged(f"has a row of unexpected length at step {row}")
        return expanded

    def _damaged(self, what: str) -> TraceError:
        return TraceError(f"{self._path} {what}; run `tracekit verify` and `tracekit repair` on the trace")


def leading_good(path: Path, sizes: Sequence[int]) -> int:
    """Number of leading chunks of `sizes` in the file `path` that match their CRC32C; an absent one counts as good."""
    if not path.is_file():
        return next((row for row, size in enumerate(sizes) if size), len(sizes))
    with path.open("rb") as file:
        for row, size in enumerate(sizes):
            if size and not _is_good(file.read(size), size):
                return row
    return len(sizes)


def rescue_shard(source: Path, target: Path, sizes: Sequence[int]) -> tuple[list[int], Checksum]:
    """Make the new file `target` the shard of the good chunks of `source`, whose chunks have `sizes`, in their steps.

    Returns the sizes of its chunks, 0 for those that were not good, and its checksum. It is on the disk then. Raises
    OSError.
    """
    kept = []
    summing = Summing()
    descriptor = files.create(target)
    try:
        with source.open("rb") as file:
            for size in sizes:
                chunk = file.read(size)
                good = size > 0 and _is_good(chunk, size)
                kept.append(size if good else 0)
                if good:
                    files.write(descriptor, [chunk])
                    summing.update(chunk)
        index = index_bytes(kept)
        files.write(descriptor, [index])
        files.sync(descriptor)
    finally:
        files.close(descriptor)
    return kept, summing.update(index).result()


def _is_good(chunk: bytes, size: int) -> bool:
    seal = int.from_bytes(chunk[-CRC_BYTES:], "little")
    return len(chunk) == size and google_crc32c.value(chunk[:-CRC_BYTES]) == seal


def cut_shard(source: Path, target: Path, sizes: Sequence[int]) -> Checksum:
    """Make `target` the shard of the leading chunks of `source`, which have `sizes`; both may be the same file.

    Returns the checksum of the new file, which is on the disk. Raises OSError.
    """
    end = sum(sizes)
    summing = Summing()
    in_place = source == target
    descriptor = files.append_to(target) if in_place else files.create(target)
    try:
        if in_place:
            files.truncate(descriptor, end)
        with source.open("rb") as file:
            for start in range(0, end, _COPY_BYTES):
                block = file.read(min(_COPY_BYTES, end - start))
                summing.update(block)
                if not in_place:
                    files.write(descriptor, [block])
        index = index_bytes(sizes)
        files.write(descriptor, [index])
        files.sync(descriptor)
    finally:
        files.close(descriptor)
    return summing.update(index).result()
