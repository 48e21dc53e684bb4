"""Traces to test with."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.tracekit.store.support import SCHEMA, record
from tracekit.store import ArraySpec, TraceWriter


@pytest.fixture(autouse=True)
def quick_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the real disk tells a test nothing: what was synced when is seen in the calls of `files`."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def make_trace(tmp_path: Path) -> Callable[..., Path]:
    def make(*steps: int, name: str = "t.zarr", schema: Mapping[str, ArraySpec] = SCHEMA) -> Path:
        with TraceWriter.create(tmp_path / name, {"policy": {"name": "mla", "widths": (1, 2)}}) as writer:
            for seed, count in enumerate(steps):
                record(writer, f"ep-{seed}", count, seed, schema)
        return tmp_path / name

    return make
