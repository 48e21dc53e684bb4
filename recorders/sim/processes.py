"""Many independent jobs of the simulator, in this process or in others that end with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import resource_tracker
from typing import Any, TypeVar

import torch

from tracekit.errors import ConfigError, TraceError

__all__ = ["MOST_PROCESSES", "carried_out"]

Job = TypeVar("Job")
Result = TypeVar("Result")

MOST_PROCESSES = 256
"""More is a slip of the finger."""

_started: list[Callable[[Any], Any]] = []
"""In a process of the pool: what does its jobs."""


def carried_out(
    start: Callable[[], Callable[[Job], Result]], jobs: Sequence[Job], processes: int, again: str
) -> Iterator[tuple[Job, Result]]:
    """Yield every one of `jobs` with its result as soon as it is done, in any order where there are several processes.

    `start` is called once in every process and gives the function that does a job; it, jobs and results must be
    picklable. Processes of the pool are spawned, compute with one thread, leave Ctrl-C to this one, and end when it is
    gone. With one process, or one job, everything happens here, and threads are the caller's.

    Raises ConfigError for an unusable number of processes, whatever a job raises, and TraceError where a process was
    killed; `again` says then what the user can do, "the same command …".
    """
    if not 1 <= processes <= MOST_PROCESSES:
        raise ConfigError(f"{processes} processes: give 1 to {MOST_PROCESSES}")
    if processes == 1 or len(jobs) < 2:
        do = start()
        for job in jobs:
            yield job, do(job)
        return
    pool = ProcessPoolExecutor(
        min(processes, len(jobs)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(start, os.getpid()),
    )
    waiting = iter(jobs)
    running: dict[Future[Any], Job] = {}
    try:
        while True:
            ahead = 2 * processes - len(running)  # futures of all jobs would be many
            with _interrupts_held():  # processes are started by `submit`
                running |= {pool.submit(_do, job): job for job in islice(waiting, ahead)}
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    except BrokenProcessPool:
        raise TraceError(f"a process was killed, perhaps for want of memory; {again}") from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold SIGINT back: a process that is started meanwhile keeps it so, from its very first moment.

    The tracker of resources is started before, because starting it lets signals through again.
    """
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(start: Callable[[], Callable[[Any], Any]], parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    _started.append(start())


def _end_with(parent: int) -> None:
    """End this process when its parent is gone: a killed run leaves nothing running."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _do(job: Any) -> Any:
    return _started[0](job)
