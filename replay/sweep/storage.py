"""Finished cells on the disk: Parquet files named after their contents, each appearing whole or not at all.

    sweep.json                   what this folder is
    cells/<sha256>.parquet       finished cells, in whatever order they were finished
    timings/<sha256>.parquet     step times, which belong to one machine
    plans/<grid>/<start>-<sha256>.parquet  names, axes, digests of the configurations start, start + 1, … of a grid
    <grid name>.parquet          the table

A killed process loses the chunk that it was computing and nothing else. Several processes, and several sweeps, may
write into one folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from replay.sweep.cells import ADDRESS_DIGITS
from tracekit.errors import TraceError
from tracekit.store import files

__all__ = ["SWEEP_FORMAT", "SweepFolder"]

SWEEP_FORMAT = "tracekit.sweep"
VERSION = "1.0"

Kind = Literal["cells", "timings"]


class SweepFolder:
    """The folder `path`: opened, or made if there is none.

    Raises TraceError (one line) for a place that is something else, or where nothing can be made.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        about = self.path / "sweep.json"
        try:
            if about.is_file():
                _check_version(about)
                return
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise TraceError(f"{self.path}: exists and is no sweep; give --out another path, or remove it")
            if any((parent / "zarr.json").exists() for parent in self.path.absolute().parents):
                raise TraceError(
                    f"{self.path}: lies inside a store, which its readers never change; give --out another"
                )
            for folder in (self.path, self.path / "cells", self.path / "plans"):
                folder.mkdir(parents=True, exist_ok=True)
            files.replace(about, json.dumps({"format": SWEEP_FORMAT, "version": VERSION, "open_loop": True}).encode())
        except OSError as error:
            raise TraceError(f"{self.path}: cannot be used ({error.strerror}); give --out another path") from None

    def add(self, rows: pl.DataFrame, kind: Kind = "cells") -> None:
        """Store finished `rows`; they are on the disk when this returns."""
        data = _parquet(rows)
        (self.path / kind).mkdir(parents=True, exist_ok=True)
        files.replace(self.path / kind / f"{hashlib.sha256(data).hexdigest()}.parquet", data)

    def parts(self, kind: Kind = "cells") -> Iterator[pl.DataFrame]:
        """What is finished, file by file; a file that is not what its name says is passed over, to be made again."""
        for path in sorted((self.path / kind).glob("*.parquet")):
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() == path.stem:
                yield pl.read_parquet(io.BytesIO(data))

    def known(self) -> npt.NDArray[np.bytes_]:
        """Addresses of all finished cells, sorted."""
        found = [part["address"].to_numpy().astype(f"S{ADDRESS_DIGITS}") for part in self.parts()]
        return np.unique(np.concatenate(found)) if found else np.zeros(0, f"S{ADDRESS_DIGITS}")

    def plan(self, grid: str, start: int) -> pl.DataFrame | None:
        """The configurations of the grid whose digest is `grid`, from number `start` on.

        None if they are not planned yet, or if the file is not what its name says.
        """
        for path in self._plans(grid).glob(f"{start:09d}-*.parquet"):
            data = path.read_bytes()
            if path.stem == _plan_name(start, data):
                return pl.read_parquet(io.BytesIO(data))
        return None

    def add_plan(self, grid: str, start: int, configurations: pl.DataFrame) -> None:
        """Store what `plan` returns."""
        data = _parquet(configurations)
        folder = self._plans(grid)
        folder.mkdir(parents=True, exist_ok=True)
        files.replace(folder / f"{_plan_name(start, data)}.parquet", data)

    def write_table(self, name: str, table: pl.DataFrame, about: Mapping[str, Any]) -> Path:
        """Write the table of the grid called `name`; `about` goes into its metadata, under `tracekit`."""
        path = self.path / f"{name}.parquet"
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            table.write_parquet(temporary, metadata={"tracekit": json.dumps(dict(about), sort_keys=True)})
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    def check_table(self, name: str) -> None:
        """Raise TraceError where the table of the grid called `name`, or `best.toml`, could not be written."""
        for path in (self.path / f"{name}.parquet", self.path / "best.toml"):
            if path.is_dir():
                raise TraceError(f"{path}: is a folder, and a file of the sweep goes there; remove it")

    def _plans(self, grid: str) -> Path:
        return self.path / "plans" / grid[:16]


def _check_version(about: Path) -> None:
    try:
        found = json.loads(about.read_bytes())
        name, version = found["format"], str(found["version"])
    except (ValueError, KeyError, TypeError):
        raise TraceError(f"{about}: is damaged; give --out another path") from None
    if name != SWEEP_FORMAT or version.partition(".")[0] != VERSION.partition(".")[0]:
        raise TraceError(f"{about.parent}: holds {name} {version}, this tracekit writes {SWEEP_FORMAT} {VERSION}")


def _plan_name(start: int, data: bytes) -> str:
    return f"{start:09d}-{hashlib.sha256(data).hexdigest()}"


def _parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()
