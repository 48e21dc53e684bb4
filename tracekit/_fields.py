"""Plain tables (from TOML or JSON) into frozen dataclasses: unknown keys are refused and name the nearest known one."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from tracekit.errors import ConfigError

__all__ = ["build", "hints_of", "nearest", "plain"]

T = TypeVar("T")

_SCALARS = frozenset({str, int, float, bool})


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a mistyped `name`: the closest known name, and all of them."""
    names = sorted(known)
    if not names:
        return "there is none to set"
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(names)}"


_hints = cache(get_type_hints)


def hints_of(cls: type) -> dict[str, Any]:
    """The resolved annotations of `cls`; to resolve them for every value would cost more than all the rest."""
    return _hints(cls)


def build(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """An instance of the frozen dataclass `cls` from `table`; `where` is the dotted path for messages.

    Raises ConfigError for an unknown key or a value of the wrong type. Ranges are checked by the class itself.
    """
    hints = hints_of(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]  # every caller passes a dataclass
    for key in table:
        if key not in fields:
            raise ConfigError(f"{where}.{key}: unknown key; {nearest(key, fields)}")
    values = {key: _convert(hints[key], value, f"{where}.{key}") for key, value in table.items()}
    try:
        return cls(**values)
    except ConfigError as error:
        message = str(error)
        raise ConfigError(message if message.startswith(where) else f"{where}: {message}") from None


def plain(value: Any) -> Any:
    """Inverse of `build`: dataclasses to dicts and tuples to lists, recursively."""
    if value is None or type(value) in _SCALARS:
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return value


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value in arguments and type(value) in {type(a) for a in arguments}:
            return value
        raise ConfigError(f"{where} = {value!r}: choose one of {', '.join(map(repr, arguments))}")
    if origin in {Union, types.UnionType}:
        return _first_that_fits(arguments, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} = {value!r}: give a list")
        return tuple(_convert(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} = {value!r}: give a table")
        return build(hint, value, where)
    return _scalar(hint, value, where)


def _first_that_fits(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in choices:
        return None
    errors: list[ConfigError] = []
    for choice in choices:
        if choice is type(None):
            continue
        try:
            return _convert(choice, value, where)
        except ConfigError as error:
            errors.append(error)
    raise errors[0]


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{where}: an integer of {len(str(abs(value)))} digits; give a number in range") from None
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is not bool and isinstance(value, bool)):
        return value
    name = {float: "a number", int: "an integer", str: "a string", bool: "true or false"}.get(hint, str(hint))
    raise ConfigError(f"{where} = {value!r}: give {name}")
