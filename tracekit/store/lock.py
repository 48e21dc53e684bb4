"""The writer's lock: an advisory `flock` that the kernel releases when the process ends, however it ends.

A `flock` belongs to the open file, which a forked child shares: a child would keep the store locked after the writer's
end. So children give it up at birth. (One that something other than Python forks keeps it until it ends or starts
another program.)
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from tracekit.errors import TraceError
from tracekit.store.places import lock_file

__all__ = ["acquire", "is_held", "release"]

_TRIES = 10
_held: set[int] = set()


def _give_up() -> None:
    """In a forked child: close what only the parent holds."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_give_up)


def acquire(root: Path) -> int:
    """Become the writer of the store at `root`; returns the lock to `release`.

    Raises TraceError naming the holder if there is a writer already. A lock file left by a dead process does not count.
    """
    descriptor = os.open(lock_file(root), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    for _ in range(_TRIES):  # `is_held` holds it for an instant; a writer holds it for good
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            time.sleep(0.01)
    else:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise TraceError(
            f"{root}: another writer (process {holder}) is recording into this trace; wait for it, or use another path"
        )
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    _held.add(descriptor)
    return descriptor


def release(descriptor: int) -> None:
    """Let the next writer in."""
    _held.discard(descriptor)
    os.ftruncate(descriptor, 0)
    os.close(descriptor)


def is_held(root: Path) -> bool:
    """Whether some process is writing to the store now."""
    try:
        descriptor = os.open(lock_file(root), os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
