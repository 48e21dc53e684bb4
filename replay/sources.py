"""Which program a result is from: a digest of its sources, and versions."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["program_digest", "program_versions"]


def program_versions() -> dict[str, str | None]:
    """Version of the package, None where it is not installed, and a digest of the sources that results depend on."""
    try:
        installed = version("mla-tracekit")
    except PackageNotFoundError:
        installed = None
    return {"tracekit": installed, "sources": program_digest()[:16]}


@cache
def program_digest() -> str:
    """SHA-256 (hex) over names and contents of the Python files that results depend on; the command line is not."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in _sources(root):
        text = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(text)}\0".encode() + text)
    return digest.hexdigest()


def _sources(root: Path) -> list[Path]:
    found = {path for folder in ("tracekit", "replay") for path in (root / folder).rglob("*.py")}
    return sorted(found - set((root / "tracekit" / "cli").rglob("*.py")))
