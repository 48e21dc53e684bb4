"""Run something in a process of its own, which has seen nothing of what this one does afterwards."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection

from tracekit.pruning.checking import in_one_line

__all__ = ["in_fresh_process"]

SECONDS = 120.0


def in_fresh_process(action: Callable[[], str]) -> str | None:
    """What `action` returns in a fork of this process, or its error in one line; None where none can be forked.

    None, too, after two minutes: a fork cannot use what a library holds for threads that it did not take along.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        return None
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(sender, action), daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, which the time limit covers
        child.start()
    sender.close()
    try:
        answer = receiver.recv() if receiver.poll(SECONDS) else None
    except EOFError:
        answer = "the process ended without an answer"
    finally:
        child.kill()
        child.join()
        child.close()
        receiver.close()
    return answer


def _send(sender: Connection, action: Callable[[], str]) -> None:
    try:
        sender.send(action())
    except Exception as error:  # noqa: BLE001  # whatever it is, the parent is to hear of it
        sender.send(in_one_line(error))
