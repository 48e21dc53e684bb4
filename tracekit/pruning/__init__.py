"""Token pruning methods: pure functions from scores to decisions, and the registry that finds one by its kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module

from tracekit._fields import nearest
from tracekit.errors import ConfigError
from tracekit.pruning.base import Decision, DecisionKey, Pruner, Shape
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

_BUILT_IN = {"none": "NONE", "naive": "NAIVE", "tri_stage": "TRI_STAGE"}
"""Kind, which is also the module's name, -> the `Pruner` in it."""


class _Registry(Mapping[str, Pruner]):
    """Kind -> pruner. A module is imported when its kind is asked for: compiled ones take a second."""

    def __getitem__(self, kind: str) -> Pruner:
        return _load(kind)

    def __iter__(self) -> Iterator[str]:
        return iter(_BUILT_IN)

    def __len__(self) -> int:
        return len(_BUILT_IN)


PRUNERS: Mapping[str, Pruner] = _Registry()


def pruner(kind: str) -> Pruner:
    """The pruner called `kind`; raises ConfigError naming the nearest known one."""
    if kind not in PRUNERS:
        raise ConfigError(f"pruner.kind = {kind!r}: no such pruner; {nearest(kind, PRUNERS)}")
    return PRUNERS[kind]


@cache
def _load(kind: str) -> Pruner:
    if kind not in _BUILT_IN:
        raise KeyError(kind)
    found: Pruner = getattr(import_module(f"tracekit.pruning.{kind}"), _BUILT_IN[kind])
    return found
