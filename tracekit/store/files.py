"""Every change the store makes on disk goes through these few functions.

One place to be careful about durability, and one seam for tests that record the operations, interrupt them, or let the
disk run full. They raise OSError; callers say what was being done. Nothing is durable before `sync` (contents) and
`sync_folder` (names) have returned.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "append_to",
    "close",
    "create",
    "make_folder",
    "remove_file",
    "remove_tree",
    "rename",
    "replace",
    "sync",
    "sync_folder",
    "truncate",
    "write",
]


def create(path: Path) -> int:
    """Create the file `path`, which must not exist, and return its descriptor."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)


def append_to(path: Path) -> int:
    """Descriptor of the existing file `path` whose writes go to its end."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)


def write(descriptor: int, parts: Sequence[Buffer]) -> None:
    """Write all of `parts` one after the other."""
    views = [memoryview(part) for part in parts]
    written = os.writev(descriptor, views)
    for view in views:  # a short write is rare (a signal, a limit reached): finish part by part
        skipped = min(written, view.nbytes)
        written -= skipped
        rest = view[skipped:]
        while rest:
            rest = rest[os.write(descriptor, rest) :]


def sync(descriptor: int) -> None:
    """Return when the file's contents are on the disk."""
    os.fsync(descriptor)


def close(descriptor: int) -> None:
    """Close the descriptor."""
    os.close(descriptor)


def truncate(descriptor: int, size: int) -> None:
    """Cut the file to `size` bytes."""
    os.ftruncate(descriptor, size)


def make_folder(path: Path) -> None:
    """Create the folder `path` in an existing parent; one that is there already is fine."""
    path.mkdir(exist_ok=True)


def sync_folder(path: Path) -> None:
    """Return when the names in the folder `path` are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Give `source` the name `target`, in one step."""
    source.rename(target)


def remove_file(path: Path) -> None:
    """Remove a file; one that is gone already is fine."""
    path.unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Remove a folder and all that is in it; one that is gone already is fine."""
    if path.exists():
        shutil.rmtree(path)


def replace(path: Path, data: bytes) -> None:
    """Make `data` the contents of `path`: after a crash the file is the old one (or absent) or the new one, whole."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    remove_file(temporary)
    descriptor = create(temporary)
    try:
        write(descriptor, [data])
        sync(descriptor)
    finally:
        close(descriptor)
    rename(temporary, path)
    sync_folder(path.parent)
