"""Token pruning methods: pure functions from scores to decisions, and the registry that finds one by its kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from tracekit._fields import nearest
from tracekit.errors import ConfigError
from tracekit.pruning.base import Decision, DecisionKey, Pruner, Shape
from tracekit.pruning.checking import guarded, in_one_line
from tracekit.pruning.digest import decision_digest
from tracekit.pruning.none import NoneConfig
from tracekit.pruning.observables import Observables
from tracekit.pruning.points import observed_patches, point_mask
from tracekit.pruning.scores import Reduction, Scores, reduce

__all__ = [
    "PRUNERS",
    "Decision",
    "DecisionKey",
    "NoneConfig",
    "Observables",
    "Pruner",
    "Reduction",
    "Scores",
    "Shape",
    "decision_digest",
    "observed_patches",
    "point_mask",
    "pruner",
    "reduce",
]

_BUILT_IN = ("none", "naive", "tri_stage", "fastv", "sp_vla", "vla_pruner")
"""Kinds that ship with the package: the module's name, and in capitals that of the `Pruner` in it."""


class _Registry(Mapping[str, Pruner]):
    """Kind -> pruner: the built-in ones, then entry points of group `tracekit.pruners`, which name a `Pruner` each.

    A module is imported when its kind is asked for: compiled ones take a second. Where a plug-in cannot be loaded,
    fails or answers what is no decision, a ConfigError names its kind.
    """

    def __getitem__(self, kind: str) -> Pruner:
        return _load(kind)

    def __contains__(self, kind: object) -> bool:
        return kind in _BUILT_IN or kind in _plugins()

    def __iter__(self) -> Iterator[str]:
        return iter((*_BUILT_IN, *_plugins()))

    def __len__(self) -> int:
        return len(_BUILT_IN) + len(_plugins())


PRUNERS: Mapping[str, Pruner] = _Registry()


def pruner(kind: str) -> Pruner:
    """The pruner called `kind`; raises ConfigError naming the nearest known one."""
    if kind not in PRUNERS:
        raise ConfigError(f"pruner.kind = {kind!r}: no such pruner; {nearest(kind, PRUNERS)}")
    return PRUNERS[kind]


@cache
def _plugins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group="tracekit.pruners") if point.name not in _BUILT_IN}


@cache
def _load(kind: str) -> Pruner:
    if kind in _BUILT_IN:
        found: Pruner = getattr(import_module(f"tracekit.pruning.{kind}"), kind.upper())
        return found
    if kind not in _plugins():
        raise KeyError(kind)
    point = _plugins()[kind]
    try:
        plugin = point.load()
    except Exception as error:
        raise ConfigError(
            f"entry point {kind!r} of group tracekit.pruners: {point.value} cannot be loaded "
            f"({in_one_line(error)}); repair or uninstall the distribution that names it"
        ) from error
    if not isinstance(plugin, Pruner) or plugin.kind != kind:
        raise ConfigError(
            f"entry point {kind!r} of group tracekit.pruners: must name a tracekit.pruning.Pruner of that kind"
        )
    return guarded(plugin)
