"""Computes parts of a sweep, in this process or in others that hand over nothing but finished files."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from replay.source import TraceSource
from replay.sweep.cells import ADDRESS_DIGITS, Target
from replay.sweep.decided import decide_cells
from replay.sweep.forward import ForwardCells
from replay.sweep.inputs import EpisodeInputs
from replay.sweep.plan import CELL_SCHEMA, TIMING_SCHEMA, Chunk, SweepPlan, plan_chunk
from replay.sweep.storage import SweepFolder
from replay.sweep.times import time_configurations
from tracekit.config import Configuration
from tracekit.errors import TraceError

__all__ = ["Done", "compute"]


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a chunk.

    `cells` of it are finished, `computed` of them now, over `steps` configuration steps (`computed_steps`: of those
    computed now). `clusterings`: see `clustering_of`. `skipped`: invalid combinations.
    """

    cells: int
    computed: int
    steps: int
    computed_steps: int
    clusterings: frozenset[str]
    skipped: int


def compute(plan: SweepPlan, folder: Path, processes: int) -> Iterator[Done]:
    """Compute every chunk that is not finished yet, in `processes` processes; tells of each chunk when it is done.

    This process is one of them: the others take a few seconds to start.
    """
    starts = iter(range(0, len(plan.grid), plan.chunk))
    worker = _Worker(plan, folder)
    if processes == 1 or len(plan.grid) <= plan.chunk:
        yield from map(worker.run, starts)
        return
    pool = ProcessPoolExecutor(
        processes - 1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(plan, folder, os.getpid()),
    )
    try:
        running: set[Future[Done]] = set()
        while True:
            ahead = 2 * (processes - 1) - len(running)  # a list of all chunks would grow with the grid
            running |= {pool.submit(_run, start) for start in islice(starts, ahead)}
            own = next(starts, None)
            if own is not None:
                yield worker.run(own)
            elif not running:
                return
            finished, running = wait(running, 0 if own is not None else None, FIRST_COMPLETED)
            for future in finished:
                yield future.result()
    except BrokenProcessPool:
        raise TraceError(
            f"{folder}: a process of the sweep was killed, perhaps for want of memory; the same command goes on where "
            "it stopped, give it fewer --processes"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


class _Worker:
    """One process's part: what it has read of the traces, and which cells were finished when it began."""

    def __init__(self, plan: SweepPlan, folder: Path) -> None:
        self._plan, self._folder = plan, SweepFolder(folder)
        self._known = self._folder.known()
        self._sources: dict[str, TraceSource] = {}
        self._inputs: dict[tuple[str, str], EpisodeInputs] = {}
        self._forward = ForwardCells(plan.policy)
        self._timed = {key for part in self._folder.parts("timings") for key in part["timing"].to_list()}

    def run(self, start: int) -> Done:
        plan = self._plan
        chunk = plan_chunk(plan, self._folder, start)
        digests = chunk.frame["configuration"].to_list()
        configs = dict(enumerate(chunk.configs))
        rows: list[dict[str, Any]] = []
        computed_steps = 0
        for target in plan.targets:
            addresses = [plan.address(digest, target) for digest in digests]
            missing = self._missing(addresses)
            for place in missing:
                if place not in configs:
                    configs[place] = self._configuration(int(chunk.frame["index"][place]))
            own = [configs[place] for place in missing]
            found = self._cells(target, own)
            computed_steps += len(own) * target.steps
            rows += [
                {
                    "address": addresses[place],
                    "configuration": digests[place],
                    "trace_digest": target.trace_digest,
                    "episode_uid": target.uid,
                    "steps": target.steps,
                    **row,
                }
                for place, row in zip(missing, found, strict=True)
            ]
        if rows:
            self._folder.add(pl.DataFrame(rows, schema=CELL_SCHEMA))
        self._time(chunk)
        return Done(
            cells=len(digests) * len(plan.targets),
            computed=len(rows),
            steps=len(digests) * sum(target.steps for target in plan.targets),
            computed_steps=computed_steps,
            clusterings=frozenset(chunk.frame["clustering"].drop_nulls().unique().to_list()),
            skipped=chunk.skipped,
        )

    def _time(self, chunk: Chunk) -> None:
        """Measure the step times that are not there yet; nothing else is computed meanwhile."""
        digests = chunk.frame["configuration"].to_list()
        for target in self._plan.timed:
            addresses = {digest: self._plan.timing_address(digest, target) for digest in digests}
            places = {digest: place for place, digest in enumerate(digests) if addresses[digest] not in self._timed}
            configs = [self._configuration(int(chunk.frame["index"][place])) for place in places.values()]
            if not configs:
                continue
            times = time_configurations(target, configs, self._plan.policy)
            rows = [
                {"timing": addresses[digest], "configuration": digest, "trace_digest": target.trace_digest, **row}
                for digest, row in zip(places, times, strict=True)
            ]
            self._folder.add(pl.DataFrame(rows, schema=TIMING_SCHEMA), "timings")

    def _missing(self, addresses: Sequence[str]) -> list[int]:
        """Places of the addresses that are not finished, each address once."""
        first = {address: place for place, address in reversed(list(enumerate(addresses)))}
        if not len(self._known):
            return sorted(first.values())
        finished = np.isin(np.array(addresses, f"S{ADDRESS_DIGITS}"), self._known)
        return sorted(place for place in first.values() if not finished[place])

    def _configuration(self, index: int) -> Configuration:
        config = self._plan.grid.configuration(index)
        assert config is not None  # noqa: S101  # the plan has valid ones only
        return config

    def _cells(self, target: Target, configs: Sequence[Configuration]) -> Sequence[Mapping[str, Any]]:
        if not configs:
            return []
        inputs = self._open(target)
        size = self._plan.sizes[target.trace_digest]
        if self._plan.level == "decisions":
            return decide_cells(inputs, configs, size)
        return self._forward.cells(self._sources[target.trace], inputs, configs, size)

    def _open(self, target: Target) -> EpisodeInputs:
        key = (target.trace, target.episode)
        if key not in self._inputs:
            if target.trace not in self._sources:
                self._sources[target.trace] = TraceSource(target.trace)
            (episode,) = self._sources[target.trace].episodes([target.episode])
            self._inputs[key] = EpisodeInputs(target, episode)
        return self._inputs[key]


_worker: list[_Worker] = []


def _start(plan: SweepPlan, folder: Path, parent: int) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    _worker.append(_Worker(plan, folder))


def _end_with(parent: int) -> None:
    """End this process when its parent is gone: a killed sweep leaves nothing running."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _run(start: int) -> Done:
    return _worker[0].run(start)
