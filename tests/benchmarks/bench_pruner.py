"""Decisions against their literal versions: `python -m tests.benchmarks.bench_pruner [--json]`.

Sides take turns for several rounds and medians are compared, so that the ratios hold on a busy machine where the
microseconds do not. Targets, on two quiet cores: one decision at most 500 µs, at most 50 µs per step in an episode of
1000, and 20 000 configuration steps per second in a sweep of decisions on two threads.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import numpy as np
from sklearn.cluster import KMeans

from tests.oracles import tri_stage as oracle
from tracekit.pruning import PRUNERS, DecisionKey, Shape
from tracekit.pruning.kmeans import kmeans_1d
from tracekit.pruning.tri_stage import TriStageConfig, decide, decide_episode, initial_state
from tracekit.testing import random_observables, random_scores

ROUNDS = 7
SHAPE = Shape(256, 256)
KEY = DecisionKey(0, 1, 2)
LONG, SHORT, CONFIGS = 1000, 30, 64


def microseconds(action: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        action()
    return (time.perf_counter() - start) / count * 1e6


def turns(sides: dict[str, tuple[Callable[[], Any], int]]) -> dict[str, list[float]]:
    """Microseconds per call of every side, one entry per round; the first call of each is not counted."""
    for action, _ in sides.values():
        action()
    rounds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, (action, count) in sides.items():
            rounds[name].append(microseconds(action, count))
    return rounds


def clustering() -> dict[str, float]:
    values = random_scores(SHAPE, 1).attention_2d[0].astype(np.float64)
    theirs = KMeans(3, n_init=10, random_state=0)
    times = turns({"ours": (lambda: kmeans_1d(values), 200), "scikit": (lambda: theirs.fit(values[:, None]), 3)})
    return {"ours_us": median(times["ours"]), "scikit_us": median(times["scikit"]), **ratio(times, "scikit", "ours")}


def tri_stage() -> dict[str, float]:
    scores, config = random_scores(SHAPE, LONG), TriStageConfig()
    one, state = scores.step(0), initial_state(config, SHAPE)
    as_lists = {f.name: getattr(one, f.name).tolist() for f in dataclasses.fields(one)}
    few = {name: values[:32] for name, values in as_lists.items()}  # the literal clustering tries every partition

    def literal() -> None:
        oracle.decide(oracle.start(32), few, config, 2, 256, [0.5] * 32)

    times = turns(
        {
            "single": (lambda: decide(one, state, config, KEY, SHAPE), 200),
            "episode": (lambda: decide_episode(scores, config, KEY, SHAPE), 1),
            "literal_32_patches": (literal, 1),
        }
    )
    return {
        "single_us": median(times["single"]),
        "episode_us_per_step": median(times["episode"]) / LONG,
        "literal_32_patches_us": median(times["literal_32_patches"]),
        **ratio(times, "literal_32_patches", "single"),
    }


def sweep() -> dict[str, float]:
    """Configurations of τ and β over one episode of 30 steps."""
    scores = random_scores(SHAPE, SHORT)
    configs = [TriStageConfig(tau_2d=0.2 * i / CONFIGS, beta=0.5 + 0.4 * i / CONFIGS) for i in range(CONFIGS)]

    def on(threads: int) -> Callable[[], Any]:
        pool = ThreadPoolExecutor(threads)
        return lambda: list(pool.map(lambda config: decide_episode(scores, config, KEY, SHAPE), configs))

    times = turns({"one": (on(1), 1), "two": (on(2), 1)})
    per_second = {name: CONFIGS * SHORT / (median(values) * 1e-6) for name, values in times.items()}
    return {
        "steps_per_s_1_thread": per_second["one"],
        "steps_per_s_2_threads": per_second["two"],
        **ratio(times, "one", "two"),
    }


def baselines() -> dict[str, float]:
    seen = random_observables(SHAPE)
    out = {}
    for kind in ("naive", "fastv", "sp_vla", "vla_pruner"):
        method = PRUNERS[kind]
        options = {"warmup": "none"} if kind == "vla_pruner" else {}
        config = method.config(**options)
        state = method.initial_state(config, SHAPE)
        if kind == "vla_pruner":
            _, state = method.decide(seen, state, config, KEY, SHAPE)
        times = turns({kind: (lambda m=method, s=state, c=config: m.decide(seen, s, c, KEY, SHAPE), 5)})
        out[f"{kind}_us"] = median(times[kind])
    return out


def ratio(times: dict[str, list[float]], over: str, under: str) -> dict[str, float]:
    """Median over the rounds of over/under."""
    return {f"{over}_over_{under}": median(a / b for a, b in zip(times[over], times[under], strict=True))}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    results = {part.__name__: part() for part in (clustering, tri_stage, sweep, baselines)}
    if arguments.json:
        json.dump(results, sys.stdout)
        return
    for part, figures in results.items():
        for name, value in figures.items():
            print(f"{part:12s} {name:32s} {value:12.1f}")


if __name__ == "__main__":
    main()
