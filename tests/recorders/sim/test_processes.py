"""The pool of processes: every job once, one thread each, deaf to Ctrl-C, and one line where a process was killed."""

import os
import signal
from functools import partial

import pytest
import torch

from recorders.sim.processes import MOST_PROCESSES, carried_out
from tracekit.errors import ConfigError, TraceError

AGAIN = "the same command goes on"


def look():
    return _looked


def _looked(job):
    """Job, process, threads, whether a Ctrl-C is held back or ignored twice over."""
    held = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    return job, os.getpid(), torch.get_num_threads(), held, signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def start_of(numbers):
    numbers.append(0)
    return numbers.append


def die():
    return _died


def _died(job):
    os.kill(os.getpid(), signal.SIGKILL if job == 2 else signal.SIGCONT)


def test_processes_share_the_jobs_compute_with_one_thread_and_leave_interrupts_to_their_parent():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    done = list(carried_out(look, range(7), 2, AGAIN))
    assert sorted(job for job, _ in done) == list(range(7))
    assert all(job == result[0] for job, result in done)
    assert os.getpid() not in {process for _, (_, process, *_) in done}
    assert {tuple(found) for _, (_, _, *found) in done} == {(1, True, True)}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_one_process_is_this_one_and_starts_once():
    numbers = []
    jobs = [1, 2, 3]
    assert [job for job, _ in carried_out(partial(start_of, numbers), jobs, 1, AGAIN)] == jobs
    assert numbers == [0, 1, 2, 3]
    assert {result[1] for _, result in carried_out(look, [5], 4, AGAIN)} == {os.getpid()}


def test_a_killed_process_is_told_in_one_line():
    with pytest.raises(TraceError, match=f"killed, perhaps for want of memory; {AGAIN}") as raised:
        list(carried_out(die, range(4), 2, AGAIN))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("processes", [0, -1, MOST_PROCESSES + 1])
def test_an_unusable_number_of_processes_is_refused(processes):
    with pytest.raises(ConfigError, match=f"{processes} processes: give 1 to"):
        list(carried_out(look, [1, 2], processes, AGAIN))
