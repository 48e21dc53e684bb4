"""A decisions-only sweep against a plain loop over `decide`: `python -m tests.benchmarks.bench_sweep [--json]`.

Half of the configurations vary clustering, its order, its input or the seed; the other half thresholds and smoothing.
Grids over the reduction read other scores and are timed apart. Targets, on two quiet cores: 20 000 configuration steps
per second, and 5 times the loop, which decides and digests the same configurations one by one; digests must be equal.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
import torch

from replay.source import TraceSource
from replay.sweep import Grid, SweepResult, grid_of, sweep
from tests.small import make_policy, record_trace
from tracekit import keys
from tracekit.engine import decision_shape
from tracekit.layout import TokenLayout
from tracekit.pruning import DecisionKey, Reduction, decision_digest, reduce
from tracekit.records import recorded_observables
from tracekit.store import ArraySpec, EpisodeInfo, TraceWriter

EPISODES = (("close_box", 7, 8), ("close_laptop", 3, 8), ("close_fridge", 5, 8), ("close_box", 8, 8))
THRESHOLDS = {
    "pruner.tau_2d": {"low": 0.0, "high": 0.1},
    "pruner.tau_3d": {"low": 0.1, "high": 0.4},
    "pruner.beta": [0.5, 0.7, 0.8, 0.85, 0.9, 0.95],
    "pruner.k": [3, 5, 7],
    "pruner.background_rate": {"low": 0.1, "high": 0.95},
}
CLUSTERING = {
    "pruner.clustering": ["combined", "separate"],
    "pruner.cluster_order": ["attention", "inverse"],
    "pruner.cluster_input": ["raw", "smoothed"],
    "pruner.seed": {"low": 0, "high": 7},
}


def half_and_half(count: int) -> Grid:
    """`count` configurations, every second one of them with a clustering or a seed of its own."""
    drawn = [
        grid_of({"name": "half", "kind": "random", "count": count // 2, "axes": {**THRESHOLDS, **more}}, "bench")
        for more in ({}, CLUSTERING)
    ]
    tables = [grid.configuration(index).to_json() for index in range(count // 2) for grid in drawn]  # type: ignore[union-attr]
    return Grid("half", "listed", listed=tuple(tables), where="bench")


def loop(trace: Path, grid: Grid, count: int) -> tuple[float, dict[tuple[str, str], str]]:
    """Configuration steps per second of `decide` and `decision_digest`, one by one, and the digests."""
    episodes = TraceSource(trace).episodes()
    configs = [config for _, config in grid.configurations(0, count)]
    shape = decision_shape(TokenLayout.from_json(episodes[0].info.attributes["layout"]))
    scores = [
        [episode.scores(step, configs[0].pruner.reduction) for step in range(len(episode))] for episode in episodes
    ]
    digests: dict[tuple[str, str], str] = {}
    start = time.perf_counter()
    for config in configs:
        method = config.method
        for episode, seen in zip(episodes, scores, strict=True):
            state, decisions = method.initial_state(config.pruner, shape), []
            for step, one in enumerate(seen, start=1):
                key = DecisionKey(config.pruner.seed, episode.info.uid, step)
                decision, state = method.decide(one, state, config.pruner, key, shape)
                decisions.append(decision)
            digests[config.digest, episode.info.id] = decision_digest(decisions)
    seconds = time.perf_counter() - start
    return len(configs) * sum(map(len, episodes)) / seconds, digests


def with_reductions(trace: Path, out: Path, layers: tuple[tuple[int, ...], ...]) -> Path:
    """The trace with scores under several reductions, and nothing else."""
    source = TraceSource(trace)
    with TraceWriter.create(out, source.trace.attributes) as writer:
        for episode in source.episodes():
            info = EpisodeInfo(
                episode.info.id, episode.info.task, uid=episode.info.uid, attributes=episode.info.attributes
            )
            rows = []
            shape = decision_shape(TokenLayout.from_json(info.attributes["layout"]))
            for step in range(len(episode)):
                row = {name: episode.stored.read(name, step) for name in (keys.FPS_STARTS, keys.POINT_PATCH)}
                needed = frozenset({"norms", "attention"})
                seen = recorded_observables(episode.stored, step, needed, source.episodes()[0]._action_spec)
                for own in layers:
                    reduction = Reduction(layers=own)
                    found = reduce(seen, reduction, shape)
                    for name in ("norm_2d", "norm_3d", "attention_2d", "attention_3d", "ortho_3d", "points"):
                        row[keys.score(reduction.digest, name)] = getattr(found, name)
                rows.append(row)
            schema = {
                name: ArraySpec(str(value.dtype), value.shape, tuple(f"axis_{axis}" for axis in range(value.ndim)))
                for name, value in rows[0].items()
            }
            with writer.episode(info, schema) as stored:
                for row in rows:
                    stored.append(row)
                stored.finish()
    return out


MEMORY = """
import json, resource, sys
import tests.small
from replay.sweep import grid_of, sweep
from tests.benchmarks.bench_sweep import CLUSTERING, THRESHOLDS

trace, out, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
table = {"name": "grown", "kind": "random", "count": count, "axes": {**THRESHOLDS, **CLUSTERING}}
found = sweep([trace], grid_of(table, "bench"), out)
data = found.to_json()
mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"cells": data["cells"], "steps_per_second": data["steps_per_second"], "peak_mb": mb}))
"""


def memory(trace: Path, folder: Path, cells: int) -> list[dict[str, Any]]:
    """Peak memory of a process that sweeps a hundredth of `cells`, and all of them: what a grid's size costs."""
    found = []
    for size in (cells // 100, cells):
        count = str(size // len(EPISODES))
        command = [sys.executable, "-c", MEMORY, str(trace), str(folder / f"grown-{size}"), count]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
        found.append(json.loads(done.stdout))
    return found


def figures(found: SweepResult) -> dict[str, Any]:
    data = found.to_json()
    return {
        name: data[name]
        for name in (
            "configurations",
            "cells",
            "steps",
            "seconds",
            "cells_per_second",
            "steps_per_second",
            "distinct_kmeans",
        )
    }


def equal_digests(found: SweepResult, digests: dict[tuple[str, str], str]) -> bool:
    table = pl.read_parquet(found.table)
    known = {
        (row[0], row[1]): row[2] for row in table.select("configuration", "episode", "decisions_digest").iter_rows()
    }
    return all(known[key] == digest for key, digest in digests.items())


def measure(folder: Path, count: int, processes: int, cells: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    trace = record_trace(folder / "trace", make_policy(), EPISODES)
    grid = half_and_half(count)
    sweep([trace], half_and_half(4), folder / "warm")  # compiled code from the disk, as in any later run
    loop(trace, grid, 2)
    rounds = []
    for number in range(3):
        one_by_one, digests = loop(trace, grid, 48)
        found = sweep([trace], grid, folder / f"half-{number}", processes=processes)
        rounds.append((found, one_by_one))
    ratios = sorted(found.to_json()["steps_per_second"] / one_by_one for found, one_by_one in rounds)
    fastest = sorted((found for found, _ in rounds), key=lambda found: found.seconds)
    layers = ((0,), (1,), (0, 1))
    several = with_reductions(trace, folder / "reductions", layers)
    over = {"pruner.reduction.layers": [list(own) for own in layers], **THRESHOLDS}
    reductions = sweep(
        [several],
        grid_of({"name": "reductions", "kind": "random", "count": count // 4, "axes": over}, "bench"),
        folder / "over",
        processes=processes,
    )
    return {
        "processes": processes,
        "half": figures(fastest[1]),
        "loop_steps_per_second": sorted(speed for _, speed in rounds)[1],
        "sweep_over_loop": ratios[1],
        "digests_equal": all(equal_digests(found, digests) for found, _ in rounds),
        "reductions": figures(reductions),
        "memory": memory(trace, folder, cells) if cells else [],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--configurations", type=int, default=8192)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--cells", type=int, default=100_000, help="of the sweep whose memory is measured; 0 for none")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder), arguments.configurations, arguments.processes, arguments.cells)
    if arguments.json:
        json.dump(results, sys.stdout)
        return
    for name, value in results.items():
        print(f"{name:24s} {value}")


if __name__ == "__main__":
    main()
