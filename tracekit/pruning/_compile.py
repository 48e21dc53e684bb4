"""The one place that says how the arithmetic of decisions is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

__all__ = ["compiled"]

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """`function` as machine code, kept on disk between processes where a cache folder can be written.

    No fast-math: every operation rounds on its own, as IEEE 754 says, products are never fused with sums, and a
    decision is the same on every machine.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": False}
    try:
        return cast("F", numba.njit(cache=True, **options)(function))
    except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
        return cast("F", numba.njit(**options)(function))
