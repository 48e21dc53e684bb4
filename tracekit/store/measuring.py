"""Which compression an array gets: measured on a row of it, since a key shrinks or not depending on the source."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from numcodecs.zstd import Zstd

from tracekit.store.schema import CODECS, ArraySpec

__all__ = ["with_measured_codec"]

SMALLEST_BYTES = 4096
WORTH = 0.75
"""Share of the raw bytes that must not be exceeded: reading a compressed row costs several times a raw one."""
SAMPLE_BYTES = 2**20
BETTER = 0.9
"""What a slower codec must come down to, of the bytes of the faster one."""


def with_measured_codec(spec: ArraySpec, row: npt.NDArray[Any]) -> ArraySpec:
    """`spec` with the codec that pays on `row`, one step of it; raw where none does.

    On recordings, images of a simulator shrink 13-fold and its depth and segmentation more; photographs, attention
    rows, norms and hidden states by an eighth at best.
    """
    data = np.ascontiguousarray(row).reshape(-1).view(np.uint8)[:SAMPLE_BYTES]
    if len(data) < SMALLEST_BYTES:
        return spec
    chosen, least = None, WORTH * len(data)
    for name, level in sorted(CODECS.items(), key=lambda item: item[1]):
        size = len(Zstd(level).encode(data))
        if size <= least:
            chosen, least = name, BETTER * size
    return replace(spec, codec=chosen)
