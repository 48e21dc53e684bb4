"""Grids as TOML files, and those that ship with the package.

name = "thresholds"
kind = "cartesian"            # cartesian | one_at_a_time | random | listed
base = "default"              # a preset or a TOML file; everything that no axis changes
[axes]
pruner.tau_2d = [0.04, 0.08, 0.12]
pruner.beta = { low = 0.5, high = 0.95, count = 10 }
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from replay.sweep.grid import Axis, Grid, Kind, Range
from tracekit._fields import build, nearest
from tracekit.config import LONGEST_NAME, Configuration, load_config
from tracekit.errors import ConfigError

__all__ = ["grid_names", "grid_of", "load_grid"]


def grid_names() -> tuple[str, ...]:
    """Names of the grids that ship with the package."""
    folder = resources.files("replay") / "grids"
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")))


def load_grid(source: str | Path) -> Grid:
    """The grid in the TOML file `source`, or the one of that name in the package.

    Raises ConfigError (one line: file, key, what to do) if there is none or it cannot be used.
    """
    path = Path(source)
    try:
        if str(source) in grid_names():
            text = (resources.files("replay") / "grids" / f"{source}.toml").read_text("utf-8")
        elif path.is_file():
            text = path.read_text("utf-8-sig")
        else:
            raise ConfigError(f"{source}: no such file or grid; grids: {', '.join(grid_names())}")
        return grid_of(tomllib.loads(text), str(source), path.parent)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{str(source)[:200]}: cannot be read as UTF-8 text ({error}); give a TOML file") from None


@dataclass(frozen=True, slots=True)
class _File:
    """The keys of a grid file."""

    name: str
    kind: Kind
    base: str = "default"
    axes: Mapping[str, Any] = field(default_factory=dict)
    count: int = 0
    seed: int = 0
    configurations: tuple[Any, ...] = ()
    skip_invalid: bool = False


def grid_of(table: Mapping[str, Any], where: str, folder: Path = Path()) -> Grid:
    """The grid that `table` describes; files that it names lie in `folder`. Raises ConfigError."""
    try:
        return _grid(table, where, folder)
    except ConfigError as error:
        message = str(error)
        raise ConfigError(message if message.startswith(where) else f"{where}: {message}") from None


def _grid(table: Mapping[str, Any], where: str, folder: Path) -> Grid:
    raw, lists = table.get("axes", {}), table.get("configurations", [])
    file = _scalars(table)
    if file.kind == "listed":
        _refuse_given(table, ("axes", "count", "seed", "base", "skip_invalid"), "listed")
        if not lists:
            raise ConfigError("configurations is empty; list presets, files or tables")
        listed = tuple(_listed(item, folder) for item in lists)
        return Grid(file.name, file.kind, listed=listed, where=where)
    _refuse_given(table, ("configurations",), file.kind)
    if file.kind != "random":
        _refuse_given(table, ("count", "seed"), file.kind)
    elif file.count < 1:
        raise ConfigError(f"count = {file.count}: say how many configurations are drawn")
    axes = dict(_axes(raw, "", file.kind))
    if not axes:
        raise ConfigError("axes is empty; give keys of a configuration and their values")
    base = _load(file.base, folder).to_json()
    grid = Grid(file.name, file.kind, base, axes, file.count, file.seed, skip_invalid=file.skip_invalid, where=where)
    for key in axes:
        _check_key(base, key)
    return grid


def _scalars(table: Mapping[str, Any]) -> _File:
    """The keys that are single values, and that the others are there in the right form."""
    known = tuple(_File.__dataclass_fields__)
    for key in table:
        if key not in known:
            raise ConfigError(f"{key}: unknown key; {nearest(key, known)}")
    for key in ("name", "kind"):
        if key not in table:
            raise ConfigError(f"{key} is missing; a grid has a name and a kind")
    if not isinstance(table.get("axes", {}), Mapping) or not isinstance(table.get("configurations", []), list):
        raise ConfigError("axes is a table of keys and values, configurations a list")
    file = build(_File, {key: value for key, value in table.items() if key not in {"axes", "configurations"}}, "grid")
    fits = len(file.name.encode()) <= LONGEST_NAME and file.name.isprintable() and file.name != ".."
    if not file.name or Path(file.name).name != file.name or not fits:
        raise ConfigError(f"name = {file.name!r}: give a name of at most {LONGEST_NAME} bytes that can be a file's")
    return file


def _refuse_given(table: Mapping[str, Any], names: Sequence[str], kind: str) -> None:
    for name in names:
        if name in table:
            raise ConfigError(f"{name} has no meaning in a grid of kind {kind!r}; remove it")


def _listed(item: Any, folder: Path) -> dict[str, Any]:
    if isinstance(item, str):
        return _load(item, folder).to_json()
    if isinstance(item, Mapping):
        return dict(item)
    raise ConfigError(f"configurations: {item!r} is neither a preset or file nor a configuration's tables")


def _load(source: str, folder: Path) -> Configuration:
    beside = folder / source
    return load_config(beside if beside.is_file() else source)


def _axes(table: Mapping[str, Any], prefix: str, kind: Kind) -> Iterator[tuple[str, Axis]]:
    for key, value in table.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and not {"low", "high"} & value.keys():
            yield from _axes(value, f"{path}.", kind)
        else:
            yield path, _axis(value, path, kind)


def _axis(value: Any, path: str, kind: Kind) -> Axis:
    if isinstance(value, Mapping):
        if not {"low", "high"} <= value.keys():
            raise ConfigError(f"axes.{path}: a range has both low and high")
        found = build(Range, value, f"axes.{path}")
        if kind != "random" and found.count < 2:
            raise ConfigError(f"axes.{path}: say with count how many values there are between low and high, at least 2")
        if kind == "random" and found.count:
            raise ConfigError(f"axes.{path}.count has no meaning in a random grid, whose count is its own; remove it")
        return found
    if not isinstance(value, list) or not value:
        raise ConfigError(f"axes.{path} = {value!r}: give a list of values, or {{ low, high, count }}")
    if any(value.count(item) > 1 for item in value):
        raise ConfigError(f"axes.{path}: a value is there twice; give each once")
    return tuple(value)


def _check_key(base: Mapping[str, Any], key: str) -> None:
    table: Any = base
    *path, last = key.split(".")
    for part in [*path, last]:
        if not isinstance(table, Mapping) or part not in table or part == "name":
            known = table if isinstance(table, Mapping) else {}
            raise ConfigError(f"axes.{key}: the base has no such key; {nearest(part, known)}")
        table = table[part]
    if isinstance(table, Mapping):
        raise ConfigError(f"axes.{key} is a table; give one of its keys: {', '.join(table)}")
