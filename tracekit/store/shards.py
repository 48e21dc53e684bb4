"""One shard file: chunks of one step each, appended in order, closed by the index that zarr's sharding codec defines.

A chunk is the row's bytes (compressed or not) and their CRC32C (4 bytes, little-endian). The index holds (offset,
bytes) as two uint64 per step, all ones for a step without a chunk, and ends in its own CRC32C.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs.zstd import Zstd

from tracekit.errors import TraceError
from tracekit.store import files
from tracekit.store.schema import CODECS, ArraySpec

__all__ = ["ABSENT", "CRC_BYTES", "ShardReader", "ShardWriter", "index_bytes"]

ABSENT = np.uint64(2**64 - 1)
CRC_BYTES = 4
_ROWS_PER_CALL = 500
_BYTES_PER_CALL = 2**28


class ShardWriter:
    """Appends rows to a new shard file at `path`. All methods raise OSError as the disk does."""

    def __init__(self, path: Path, spec: ArraySpec) -> None:
        """Create the file; it must not exist."""
        self.path = path
        self.crc = 0
        self.size = 0
        self.index: list[tuple[int, int]] = []
        self._compress = None if spec.codec is None else Zstd(CODECS[spec.codec]).encode
        self._descriptor = files.create(path)
        self._dirty = True

    def skip(self, rows: int = 1) -> None:
        """Leave `rows` steps without a chunk."""
        self.index += [(int(ABSENT), int(ABSENT))] * rows

    def append(self, row: npt.NDArray[Any]) -> int:
        """Write one row (C order, little-endian); returns the bytes its chunk takes."""
        data: Any = row.reshape(-1).view(np.uint8)
        if self._compress is not None:
            data = self._compress(data)
        seal = int(google_crc32c.value(data)).to_bytes(CRC_BYTES, "little")
        files.write(self._descriptor, [data, seal])
        self.crc = google_crc32c.extend(google_crc32c.extend(self.crc, data), seal)
        self.index.append((self.size, len(data) + CRC_BYTES))
        self.size += len(data) + CRC_BYTES
        self._dirty = True
        return len(data) + CRC_BYTES

    def sync(self) -> None:
        """Return when all rows so far are on the disk."""
        if self._dirty:
            files.sync(self._descriptor)
            self._dirty = False

    def finish(self) -> None:
        """Write the index, sync and close."""
        index = index_bytes(self.index)
        files.write(self._descriptor, [index])
        self.crc = google_crc32c.extend(self.crc, index)
        self.size += len(index)
        self._dirty = True
        self.sync()
        self.close()

    def close(self) -> None:
        """Release the file."""
        if self._descriptor >= 0:
            files.close(self._descriptor)
            self._descriptor = -1


def index_bytes(index: list[tuple[int, int]]) -> bytes:
    """The index of a shard whose chunks have these (offset, bytes), sealed."""
    data = np.array(index, "<u8").tobytes()
    return data + int(google_crc32c.value(data)).to_bytes(CRC_BYTES, "little")


class ShardReader:
    """Reads rows of the closed shard `path` of `rows` steps; every chunk is checked before it is returned.

    Raises TraceError, naming the file and the step, for a file that is missing, cut short or altered.
    """

    def __init__(self, path: Path, spec: ArraySpec, rows: int) -> None:
        """Read and check the index."""
        self._path = path
        self._spec = spec
        self._raw = spec.codec is None
        length = 16 * rows + CRC_BYTES
        try:
            with path.open("rb") as file:
                self._end = file.seek(0, os.SEEK_END) - length
                file.seek(max(0, self._end))
                data = file.read(length)
        except OSError as error:
            raise self._damaged(f"cannot be read ({error.strerror})") from error
        if self._end < 0 or google_crc32c.value(data[:-CRC_BYTES]) != int.from_bytes(data[-CRC_BYTES:], "little"):
            raise self._damaged("has a damaged index")
        self.index: npt.NDArray[np.uint64] = np.frombuffer(data[:-CRC_BYTES], "<u8").reshape(rows, 2)

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """(steps,) whether the step has a chunk."""
        return np.asarray(self.index[:, 0] != ABSENT)

    def read(self, rows: npt.NDArray[np.int64], out: npt.NDArray[Any]) -> None:
        """Fill `out[i]` ((n, …) of the stored dtype, C order) with row `rows[i]`; every row must be present."""
        flat = out.reshape(len(rows), -1).view(np.uint8)
        spans = self.index[rows].astype(np.int64)
        if len(rows) and (int(spans.sum(1).max()) > self._end or int(spans[:, 1].min()) < CRC_BYTES):
            raise self._damaged("has an index that points outside of it")
        with self._path.open("rb", buffering=0) as file:
            if self._raw:
                self._read_raw(file.fileno(), rows, spans, flat)
            else:
                for i, row in enumerate(rows):
                    chunk = os.pread(file.fileno(), int(spans[i, 1]), int(spans[i, 0]))
                    self._check(chunk[:-CRC_BYTES], chunk[-CRC_BYTES:], int(row))
                    flat[i] = self._expand(chunk[:-CRC_BYTES], flat.shape[1], int(row))

    def _read_raw(
        self,
        descriptor: int,
        rows: npt.NDArray[np.int64],
        spans: npt.NDArray[np.int64],
        flat: npt.NDArray[np.uint8],
    ) -> None:
        """Rows straight into place, many per call where they follow each other on the disk."""
        stride = flat.shape[1] + CRC_BYTES
        if len(rows) and bool((spans[:, 1] != stride).any()):
            raise self._damaged("has chunks of an unexpected length")
        seals = np.empty((len(rows), CRC_BYTES), np.uint8)
        limit = max(1, min(_ROWS_PER_CALL, _BYTES_PER_CALL // stride))
        breaks = np.flatnonzero(np.diff(spans[:, 0]) != stride) + 1
        for run in np.split(np.arange(len(rows)), breaks):
            for start in range(0, len(run), limit):
                part = run[start : start + limit]
                buffers = [buffer for i in part for buffer in (flat[i], seals[i])]
                if os.preadv(descriptor, buffers, int(spans[part[0], 0])) != stride * len(part):
                    raise self._damaged("is cut short")
        for i, row in enumerate(rows):
            self._check(flat[i], seals[i].tobytes(), int(row))

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
