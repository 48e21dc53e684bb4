"""What a forward sweep saves by sharing passes: `python -m tests.benchmarks.bench_forward_sweep [--json]`.

Seven pruned configurations and an unpruned one go through an episode of the reference policy:
with the encoders shared only, and, as a sweep runs them, with the passes over all tokens shared too. Both in
every round; ratios are of one round, figures are medians.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from replay.source import TraceSource
from replay.sweep import grid_of
from replay.sweep.cells import Target
from replay.sweep.forward import _OneStep, _replayed
from replay.sweep.inputs import EpisodeInputs
from tests.small import record_trace
from tracekit.config import Configuration
from tracekit.engine.sharing import SharingForward
from tracekit.policy import load_policy

STEPS = 7
AXES = {"pruner.background_rate": {"low": 0.3, "high": 0.9, "count": 7}}
KEPT: dict[str, Any] = {"reuse": {"kind": "prefix_kv", "fps": "pinned"}}
BASES: dict[str, dict[str, Any]] = {
    "current": {},
    "current, prefix_kv": KEPT,
    "lagged": {"observe": {"mode": "lagged"}},
    "lagged, prefix_kv": {**KEPT, "observe": {"mode": "lagged"}},
}


def configurations(changes: dict[str, Any]) -> dict[str, Configuration]:
    """An unpruned configuration and pruned ones, by digest."""
    grid = grid_of({"name": "g", "kind": "cartesian", "axes": AXES}, "bench")
    tables = [config.to_json() | changes for _, config in grid.configurations()]
    tables.append(Configuration().to_json() | {key: value for key, value in changes.items() if key != "observe"})
    made = [Configuration.from_table(table, "bench") for table in tables]
    return {config.digest: config for config in made}


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    policy = load_policy("reference")
    source = TraceSource(record_trace(folder / "trace", policy, (("close_box", 7, STEPS),)))
    (episode,) = source.episodes()
    inputs = EpisodeInputs(Target(str(source.path), "", episode.info.id, episode.info.uid, "", len(episode)), episode)
    found = {}

    def shared(configs: dict[str, Configuration]) -> None:
        _replayed(_OneStep(policy), configs, source, inputs)

    def unshared(configs: dict[str, Configuration]) -> None:
        with patch.object(SharingForward, "predict", lambda self, *args: self._forward.predict(*args)):
            shared(configs)

    for name, changes in BASES.items():
        configs = configurations(changes)
        times = [[seconds(partial(side, configs)) for side in (unshared, shared)] for _ in range(rounds)]
        found[name] = {
            "configurations": len(configs),
            "ms_per_configuration_and_step": 1e3 * median(one[1] for one in times) / len(configs) / STEPS,
            "saving": median(one[0] / one[1] for one in times),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options.rounds)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for name, row in found.items():
        print(f"{name:20} {row['ms_per_configuration_and_step']:6.1f} ms per configuration and step, "
              f"{row['saving']:.2f} x as fast as with every pass computed for each")  # fmt: skip


if __name__ == "__main__":
    main()
