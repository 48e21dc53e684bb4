"""The one place that says how the arithmetic of decisions is compiled."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar, cast

import numba

import tracekit.philox

__all__ = ["compiled", "source_digest"]

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """`function` as machine code, kept on disk between processes where a cache folder can be written.

    No fast-math: every operation rounds on its own, as IEEE 754 says, products are never fused with sums, and a
    decision is the same on every machine. numba would reuse a function's machine code when only a function that it
    calls, in another file, was changed; so the name that it is kept under carries a digest of all sources.
    """
    code, closure = function.__code__, function.__closure__
    named = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    named.__qualname__ = f"{function.__qualname__}_{_digest_of_package()}"
    named.__doc__, named.__module__ = function.__doc__, function.__module__
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": False}
    try:
        return cast("F", numba.njit(cache=True, **options)(named))
    except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
        return cast("F", numba.njit(**options)(named))


def source_digest(*paths: Path) -> str:
    """Twelve hexadecimal digits of SHA-256 over the names and contents of `paths`."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        text = path.read_bytes()
        digest.update(f"{path.name}\0{len(text)}\0".encode() + text)
    return digest.hexdigest()[:12]


@cache
def _digest_of_package() -> str:
    return source_digest(Path(tracekit.philox.__file__), *Path(__file__).parent.glob("*.py"))
