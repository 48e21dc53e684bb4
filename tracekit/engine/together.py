"""Throughput mode: control steps of several episodes or configurations side by side, their forward calls in one.

Every job runs in a lane, a thread that is awake only while it is its turn, so that nothing ever happens at once and the
order is always the same. A lane sleeps where its step asks for a forward call that nobody watches; when all have asked,
the calls are computed together. Observed calls are computed at once, alone, as in latency mode.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from tracekit.config import ExecutionConfig
from tracekit.engine.forward import Beside
from tracekit.engine.threads import execution_threads
from tracekit.errors import ConfigError
from tracekit.policy import Cache, Policy, Together

__all__ = ["LANES", "run_together"]

LANES = 16
"""Jobs at once. A tail of 4 rows reads all weights; 16 of them read them once, and are still few rows."""

Result = TypeVar("Result")


def run_together(
    policy: Policy, jobs: Sequence[Callable[[Beside], Result]], execution: ExecutionConfig, lanes: int = LANES
) -> list[Result]:
    """The results of `jobs`, in order. Each is called with what its control steps need as `StepOptions.beside`.

    Equal to running them one after the other up to rounding. Raises what a job raises, after stopping the others, and
    ConfigError for a policy that cannot compute several steps at once.
    """
    if not isinstance(policy, Together):
        raise ConfigError(
            f'execution.mode = "throughput" needs a policy with forward_together, and {type(policy).__name__} has '
            'none; use mode = "latency", or see tracekit.policy.Together'
        )
    every = [_Lane(job) for job in jobs]
    waiting, running = list(every), list[_Lane[Result]]()
    try:
        with execution_threads(execution), torch.inference_mode():
            while waiting or running:
                while waiting and len(running) < lanes:
                    running.append(waiting.pop(0))
                for lane in running:
                    lane.resume()
                running = [lane for lane in running if lane.request is not None]
                if running:
                    rows, positions, caches = zip(*(lane.asked for lane in running), strict=True)
                    for lane, answer in zip(running, policy.forward_together(rows, positions, caches), strict=True):
                        lane.answer = answer
    finally:
        for lane in every:
            lane.stop()
    return [lane.result for lane in every]


class _Stopped(BaseException):
    """Ends a lane whose companion has failed."""


class _Lane(Generic[Result]):
    """One job, in a thread that runs between `resume` and the next request, and at no other time."""

    def __init__(self, job: Callable[[Beside], Result]) -> None:
        self._job = job
        self._turn, self._rest = threading.Semaphore(0), threading.Semaphore(0)
        self._results: list[Result] = []
        self._error: BaseException | None = None
        self._stopping = False
        self.request: tuple[Tensor, Tensor, Cache | None] | None = None
        self.answer: Tensor | None = None
        self._thread = threading.Thread(target=self._run, name="tracekit-lane", daemon=True)
        self._thread.start()

    @property
    def result(self) -> Result:
        """What the job returned."""
        return self._results[0]

    @property
    def asked(self) -> tuple[Tensor, Tensor, Cache | None]:
        """The forward call that the lane waits for."""
        if self.request is None:
            raise RuntimeError("the lane waits for nothing")
        return self.request

    def resume(self) -> None:
        """Run until the next request or the end; raises what the job raised."""
        self.request = None
        self._turn.release()
        self._rest.acquire()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End the job where it waits."""
        if self._thread.is_alive():
            self._stopping = True
            self._turn.release()
            self._thread.join()

    def _run(self) -> None:
        self._turn.acquire()
        try:
            if not self._stopping:
                self._results.append(self._job(self._ask))
        except _Stopped:
            pass
        except BaseException as error:  # noqa: BLE001  # it is raised in the thread that called
            self._error = error
        finally:
            self.request = None
            self._rest.release()

    def _ask(self, rows: Tensor, positions: Tensor, cache: Cache | None) -> Tensor:
        self.request = rows, positions, cache
        self._rest.release()
        self._turn.acquire()
        if self._stopping or self.answer is None:
            raise _Stopped
        answer, self.answer = self.answer, None
        return answer
