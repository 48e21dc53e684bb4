"""Recorded traces that ship with the package, so that replays and sweeps work without a simulator or a robot."""

from __future__ import annotations

from pathlib import Path

__all__ = ["packaged_trace"]


def packaged_trace(name: str | Path) -> Path:
    """The packaged trace `name` (`sample`) where there is one and no path of that name, else `name` as a path."""
    packaged = Path(__file__).parent / f"{name}.zarr"
    given = Path(name)
    return packaged if len(given.parts) == 1 and not given.exists() and packaged.is_dir() else given
