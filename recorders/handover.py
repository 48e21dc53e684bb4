"""Handing recorded steps to the writer: a bounded queue and one thread, so that the disk is never in the user's loop.

A full queue blocks the loop (and says for how long) or drops the whole step (and counts it). What the writer's thread
raises comes up in the user's loop, at the next step or at the end of the episode.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, Literal, TypeVar

__all__ = ["Handover", "Overflow"]

Overflow = Literal["block", "drop"]
Item = TypeVar("Item")


class Handover(Generic[Item]):
    """Calls `write(item)` for every item put, in order, in one thread of its own.

    `capacity`: items that may wait. `longest`: how many ever waited, `blocked_ns`: time spent waiting for room,
    `dropped`: items that found no room, `lost`: items that still waited when `write` raised.
    """

    def __init__(self, write: Callable[[Item], None], capacity: int, overflow: Overflow) -> None:
        self._write, self._capacity, self._overflow = write, capacity, overflow
        self._waiting: deque[Item] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._ended = False
        self._error: BaseException | None = None
        self.longest = 0
        self.blocked_ns = 0
        self.dropped = 0
        self.lost = 0
        self._thread = threading.Thread(target=self._run, name="tracekit-writer", daemon=True)
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether `write` raised: what came after that item was not written."""
        return self._error is not None

    def room(self) -> int | None:
        """Wait for room, or find that there is none. Nanoseconds waited; None if the item must be dropped.

        Raises what the writer raised.
        """
        start = time.perf_counter_ns()
        with self._changed:
            self._raise_error()
            if len(self._waiting) >= self._capacity and self._overflow == "drop":
                self.dropped += 1
                return None
            self._changed.wait_for(lambda: len(self._waiting) < self._capacity or self._error is not None)
            self._raise_error()
        waited = time.perf_counter_ns() - start
        self.blocked_ns += waited
        return waited

    def put(self, item: Item) -> None:
        """Queue an item, for which there is `room`."""
        with self._changed:
            if self._error is not None:
                self.lost += 1
                return
            self._waiting.append(item)
            self.longest = max(self.longest, len(self._waiting))
            self._changed.notify_all()

    def finish(self) -> None:
        """Return when everything is written and the thread has ended; raises what the writer raised."""
        self.close()
        self._raise_error()

    def close(self) -> None:
        """As `finish`, but raises nothing."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            # not by joining the thread: a join that Ctrl-C interrupts takes it for ended (Python 3.11)
            self._changed.wait_for(lambda: self._ended)
        self._thread.join()

    def abandon(self) -> None:
        """Throw away what waits, let the item that is being written end, and end the thread."""
        with self._changed:
            self._waiting.clear()
        self.close()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while self._write_next():
                pass
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _write_next(self) -> bool:
        """Whether there may be more to write."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if not self._waiting:
                return False
            item = self._waiting.popleft()
            self._changed.notify_all()
        try:
            self._write(item)
        except BaseException as error:  # noqa: BLE001  # whatever it is belongs to the user's thread
            with self._changed:
                self._error = error
                self.lost = len(self._waiting)
                self._waiting.clear()
                self._changed.notify_all()
            return False
        return True
