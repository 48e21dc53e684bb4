"""Which program a result is from: a digest of its sources, and versions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["program_versions", "source_digest"]


def program_versions() -> dict[str, str | None]:
    """Version of the package, None where it is not installed, and a digest of the sources that results depend on."""
    try:
        installed = version("mla-tracekit")
    except PackageNotFoundError:
        installed = None
    return {"tracekit": installed, "sources": source_digest(("tracekit", "replay"))[:16]}


@cache
def source_digest(folders: tuple[str, ...]) -> str:
    """SHA-256 (hex) over names and contents of the Python files below `folders` of the installed packages."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in _sources(root, folders):
        text = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(text)}\0".encode() + text)
    return digest.hexdigest()


def _sources(root: Path, folders: Iterable[str]) -> list[Path]:
    found = {path for folder in folders for path in (root / folder).rglob("*.py")}
    return sorted({*found, root / "tracekit" / "philox.py"} - set((root / "tracekit" / "cli").rglob("*.py")))
