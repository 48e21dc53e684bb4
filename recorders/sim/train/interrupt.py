"""An interrupt that waits for a good moment."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["interrupts_wait"]


@contextmanager
def interrupts_wait() -> Iterator[Callable[[], bool]]:
    """Let the first signal that would raise KeyboardInterrupt wait; yields the question whether it has come.

    The second one interrupts at once. Only the main thread is interrupted by signals: in others the answer is no.
    """
    came = False
    held: dict[int, Any] = {}

    def release() -> None:
        for number, handler in held.items():
            signal.signal(number, handler)
        held.clear()

    def note(_number: int, _frame: object) -> None:
        nonlocal came
        came = True
        release()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is signal.default_int_handler:
                held[number] = signal.signal(number, note)
    try:
        yield lambda: came
    finally:
        release()
