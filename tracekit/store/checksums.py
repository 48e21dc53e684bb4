"""How a file of the store is recognised: its length, its CRC32C and its SHA-256.

CRC32C alone cannot tell two shards from each other: chunks and index end in their own CRC32C, and that of a message
with its CRC behind it does not depend on the message. Shards of equal lengths would all have the same one. The check
of a whole file is therefore SHA-256, which nobody can meet by accident or on purpose. It reads 2.0 GB/s here (0.4 to
0.5 on processors without SHA instructions), BLAKE2b 1.1, SHA-512 0.9 and SHA3-256 0.6; CRC32C, which still guards every
chunk that is read, 6 to 30. It is computed while a file is written, without reading it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import google_crc32c

__all__ = ["Checksum", "Summing", "checksum_of", "checksums_from_json", "checksums_to_json", "summed"]

_BLOCK_BYTES = 2**23


@dataclass(frozen=True, slots=True)
class Checksum:
    """Bytes, CRC32C and SHA-256 (hex) of a file; `sha256` is None of what version 1.0 committed."""

    nbytes: int
    crc32c: int
    sha256: str | None = None

    def fits(self, found: Checksum) -> bool:
        """Whether `found`, which is complete, is of the file that this one was taken of."""
        return self == (found if self.sha256 is not None else replace(found, sha256=None))


class Summing:
    """The checksum of what was fed to `update`, piece by piece."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._crc = 0
        self._sha = hashlib.sha256()

    def update(self, data: Any) -> Self:
        """Add `data`, contiguous bytes."""
        self.nbytes += len(data)
        self._crc = google_crc32c.extend(self._crc, data)
        self._sha.update(data)
        return self

    def result(self) -> Checksum:
        """Of everything so far."""
        return Checksum(self.nbytes, self._crc, self._sha.hexdigest())


def checksum_of(data: bytes) -> Checksum:
    """The checksum of a file that holds `data`."""
    return Summing().update(data).result()


def summed(path: Path, end: int | None = None) -> Summing:
    """The file `path`, or its first `end` bytes, fed to a new `Summing`. Raises OSError."""
    found, left = Summing(), path.stat().st_size if end is None else end
    with path.open("rb") as file:
        while block := file.read(min(_BLOCK_BYTES, left)):
            found.update(block)
            left -= len(block)
    return found


def checksums_to_json(listed: Mapping[str, Checksum]) -> dict[str, Any]:
    """The fields `files` (path -> [bytes, CRC32C], as in version 1.0) and `sha256` (path -> hex) that say `listed`."""
    found: dict[str, Any] = {"files": {path: [about.nbytes, about.crc32c] for path, about in listed.items()}}
    strong = {path: about.sha256 for path, about in listed.items() if about.sha256 is not None}
    return {**found, "sha256": strong} if strong else found


def checksums_from_json(data: Mapping[str, Any]) -> dict[str, Checksum]:
    """Inverse of `checksums_to_json`; what has neither field lists nothing."""
    strong = data.get("sha256", {})
    return {path: Checksum(size, crc, strong.get(path)) for path, (size, crc) in data.get("files", {}).items()}
