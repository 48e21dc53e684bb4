"""Checks that several pruner configurations share."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal, get_args, get_origin

from tracekit._fields import hints_of
from tracekit.errors import ConfigError

__all__ = ["check_choices", "check_range", "check_unread", "kept_count"]


def check_choices(config: Any) -> None:
    """Refuse a value of a `Literal` field of the dataclass `config` that is not among its choices."""
    hints = hints_of(type(config))
    for field in fields(config):
        choices = get_args(hints[field.name])
        if get_origin(hints[field.name]) is Literal and getattr(config, field.name) not in choices:
            raise ConfigError(
                f"pruner.{field.name} = {getattr(config, field.name)!r}: choose one of {', '.join(map(str, choices))}"
            )


def check_range(config: Any, name: str, low: float, high: float, meaning: str, *, open_end: bool = False) -> None:
    """Refuse a number outside [low, high], or [low, high) with `open_end`; `meaning` says what it is."""
    value = getattr(config, name)
    if not low <= value <= high or (open_end and value == high):
        bracket = ")" if open_end else "]"
        raise ConfigError(f"pruner.{name} = {value}: must lie in [{low}, {high}{bracket}; it is {meaning}")


def check_unread(config: Any, names: tuple[str, ...], reader: str) -> None:
    """Refuse options that are set and that nothing reads; `reader` says what would."""
    defaults = {field.name: field.default for field in fields(config)}
    for name in names:
        if getattr(config, name) != defaults[name]:
            raise ConfigError(f"pruner.{name} = {getattr(config, name)!r}: is read by {reader} only; remove it")


def kept_count(tokens: int, rate: float) -> int:
    """round(tokens·(1 - rate)), at least 1: the tokens of a modality that a budget leaves (102 of 256 at rate 0.6)."""
    return max(1, round(tokens * (1 - rate)))
