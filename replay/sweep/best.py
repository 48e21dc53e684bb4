"""The best configuration under constraints, and configurations as TOML."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from tracekit._fields import nearest
from tracekit.errors import ConfigError

__all__ = ["Constraint", "best", "configuration_toml", "parse_constraint"]

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}


@dataclass(frozen=True, slots=True)
class Constraint:
    """`column` compared with `bound`, such as effective_rate >= 0.5."""

    column: str
    comparison: str
    bound: float


def parse_constraint(text: str) -> Constraint:
    """`COLUMN <= NUMBER` (or <, >, >=); raises ConfigError for anything else."""
    match = re.fullmatch(r"\s*([a-z_][\w.]*)\s*(<=|>=|<|>)\s*([-+.\deE]+)\s*", text)
    try:
        if match is not None:
            return Constraint(match[1], match[2], float(match[3]))
    except ValueError:
        pass
    raise ConfigError(f"--where {text!r}: give a column, one of <=, <, >, >=, and a number: 'effective_rate >= 0.5'")


def best(summary: pl.DataFrame, column: str, constraints: Sequence[Constraint], *, largest: bool = False) -> int | None:
    """Row of `summary` whose `column` is smallest (or `largest`) among those that meet all `constraints`.

    Of equal ones the first; None if none meets them. Raises ConfigError naming the columns that there are.
    """
    numbers = [name for name, dtype in summary.schema.items() if dtype.is_numeric() and name != "index"]
    for name in (column, *(constraint.column for constraint in constraints)):
        if name not in numbers:
            raise ConfigError(f"{name!r} is no column of this sweep's configurations; {nearest(name, numbers)}")
    rows = summary.with_row_index("row").filter(pl.col(column).is_not_null() & pl.col(column).is_not_nan())
    for constraint in constraints:
        rows = rows.filter(_COMPARE[constraint.comparison](pl.col(constraint.column), constraint.bound))
    if not len(rows):
        return None
    return int(rows.sort(column, descending=largest, maintain_order=True)["row"][0])


def configuration_toml(table: Mapping[str, Any], comment: str) -> str:
    """`table` (a configuration's tables) as a TOML file that `load_config` reads back, under a `comment` line."""
    lines = [f"# {line}" for line in comment.splitlines()]
    _write(table, "", lines)
    return "\n".join(lines) + "\n"


def _write(table: Mapping[str, Any], path: str, lines: list[str]) -> None:
    for key, value in table.items():
        if not isinstance(value, Mapping) and value is not None:  # what is not set is not in the file
            lines.append(f"{key} = {_value(value)}")
    for key, value in table.items():
        if isinstance(value, Mapping):
            name = f"{path}{key}"
            lines.extend(("", f"[{name}]"))
            _write(value, f"{name}.", lines)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, int | float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)
