"""Sealed lines: one JSON object per line that carries the CRC32C of its own bytes.

    {"crc32c":"1a2b3c4d","seq":0,...}

The checksum covers every byte after its own field, as written, so no bit of a line can change unnoticed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import google_crc32c

from tracekit.digest import canonical_json

__all__ = ["seal", "unseal"]

_HEAD = b'{"crc32c":"'
_BODY = len(_HEAD) + 8 + 2


def seal(record: Mapping[str, Any]) -> bytes:
    """`record` (not empty, plain values) as one sealed line with its line end; raises TracekitError on other values."""
    body = canonical_json(dict(record))[1:]
    return b'%s%08x",%s\n' % (_HEAD, google_crc32c.value(body), body)


def unseal(line: bytes) -> dict[str, Any] | None:
    """The record of a sealed line, or None if a single bit of it is not as it was written."""
    if not line.endswith(b"}\n") or line[:_BODY] != b'%s%08x",' % (_HEAD, google_crc32c.value(line[_BODY:-1])):
        return None
    try:
        record: dict[str, Any] = json.loads(b"{" + line[_BODY:])
    except ValueError:  # a checksum that holds, of what nobody wrote
        return None
    return record
