"""What is wrong with a decision, and with a plug-in that fails: in one line, by the name of its kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

import numpy as np

from tracekit.errors import ConfigError, TracekitError
from tracekit.pruning.base import Decision, Pruner, Shape

__all__ = ["decision_fault", "guarded", "in_one_line"]

_GUARDED = ("requires", "initial_state", "needs_pinned_fps", "behind", "longest_state", "decide_at", "remember")
"""Functions of a `Pruner` whose failures are named; `decide` has its answer checked as well."""


def decision_fault(decision: Any, shape: Shape) -> str | None:
    """What keeps `decision` from being carried out for a policy of `shape`: the first fault, None without any."""
    if not isinstance(decision, Decision):
        return f"a {type(decision).__name__} is given instead of a Decision"
    tokens, patches = decision.keep_3d_tokens, decision.keep_3d_patches
    wanted: list[tuple[str, Any, int, type]] = [("keep_2d", decision.keep_2d, shape.n_2d, np.bool_)]
    if not shape.n_3d:
        if tokens is not None or patches is not None:
            return "a 3D mask for a policy without points"
    elif tokens is not None:
        if patches is not None:
            return "both keep_3d_patches and keep_3d_tokens are given; give one"
        wanted.append(("keep_3d_tokens", tokens, shape.n_3d, np.bool_))
    elif patches is None:
        return "neither keep_3d_patches nor keep_3d_tokens is given"
    else:
        wanted.append(("keep_3d_patches", patches, shape.n_2d, np.bool_))
    for name, dtype in (("s1", np.uint8), ("s2", np.uint8), ("cluster", np.int8), ("conflict", np.bool_)):
        if getattr(decision, name) is not None:
            wanted.append((name, getattr(decision, name), shape.n_2d, dtype))
    wanted += [(f"margins[{name!r}]", margin, shape.n_2d, np.float64) for name, margin in decision.margins.items()]
    faults = (_array_fault(array, size, dtype, name) for name, array, size, dtype in wanted)
    return next((fault for fault in faults if fault), None)


def guarded(plugin: Pruner) -> Pruner:
    """`plugin`, whose functions raise a ConfigError that names its kind where they fail or answer what is no decision.

    The original error is its `__cause__`; what is a TracekitError already passes.
    """

    @wraps(plugin.decide)
    def decide(
        seen: Any, state: Any, config: Any, key: Any, shape: Shape, *rest: Any, **options: Any
    ) -> tuple[Decision, Any]:
        where = f"decide at step {key.step}"
        answer = _named(plugin, where, plugin.decide)(seen, state, config, key, shape, *rest, **options)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise ConfigError(f"pruner {plugin.kind!r}: {where} must return (Decision, state)")
        fault = decision_fault(answer[0], shape)
        if fault:
            raise ConfigError(f"pruner {plugin.kind!r}: {where}: {fault}; check it with tracekit.testing.check_pruner")
        return answer

    functions: dict[str, Any] = {name: getattr(plugin, name) for name in _GUARDED}
    named: dict[str, Any] = {name: one and _named(plugin, name, one) for name, one in functions.items()}
    return replace(plugin, decide=decide, **named)


def in_one_line(error: BaseException) -> str:
    """Type and message of `error`, without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _named(plugin: Pruner, where: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except TracekitError:
            raise
        except Exception as error:
            raise ConfigError(
                f"pruner {plugin.kind!r}: {where} failed with {in_one_line(error)}; check it with "
                "tracekit.testing.check_pruner"
            ) from error

    return call


def _array_fault(array: Any, size: int, dtype: type, name: str) -> str | None:
    if not isinstance(array, np.ndarray):
        return f"{name} is a {type(array).__name__}; it must be a numpy array"
    if array.shape != (size,) or array.dtype != dtype:
        return f"{name} is {array.dtype}{array.shape}; it must be {np.dtype(dtype)}{(size,)}"
    return None
