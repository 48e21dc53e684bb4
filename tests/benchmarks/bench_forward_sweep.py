"""What a forward sweep saves by letting configurations take turns: `python -m tests.benchmarks.bench_forward_sweep`.

The same cells three ways in every round: each configuration alone, as `replay` runs it; taking turns with the encoders
shared; and with the passes over all tokens shared too, as a sweep runs them. Ratios are of one round, figures medians.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from replay.accuracy import replay_episode
from replay.source import TraceSource
from replay.sweep import grid_of
from replay.sweep.cells import Target
from replay.sweep.forward import _OneStep, _replayed
from replay.sweep.inputs import EpisodeInputs
from tracekit.config import Configuration
from tracekit.engine.sharing import SharingForward
from tracekit.policy import Precision

CONFIGURATIONS = 8
AXES = {"pruner.background_rate": {"low": 0.3, "high": 0.95, "count": CONFIGURATIONS - 1}}
BASES: dict[str, dict[str, Any]] = {
    "current": {},
    "current, prefix_kv": {"reuse": {"kind": "prefix_kv", "fps": "pinned"}},
    "current, kv = drop": {"reuse": {"kind": "prefix_kv", "fps": "pinned", "kv": "drop"}},
    "lagged, prefix_kv": {"reuse": {"kind": "prefix_kv", "fps": "pinned"}, "observe": {"mode": "lagged"}},
}


def configurations(changes: dict[str, Any]) -> dict[str, Configuration]:
    """An unpruned configuration and pruned ones, by digest."""
    grid = grid_of({"name": "g", "kind": "cartesian", "axes": AXES}, "bench")
    tables = [config.to_json() | changes for _, config in grid.configurations()]
    tables.append(Configuration().to_json() | {key: value for key, value in changes.items() if key != "observe"})
    made = [Configuration.from_table(table, "bench") for table in tables]
    return {config.digest: config for config in made}


def milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def measure(trace: str | Path, rounds: int) -> dict[str, Any]:
    source = TraceSource(trace)
    episode = source.episodes()[0]
    policy = source.policy(None, Precision())
    target = Target(str(trace), "", episode.info.id, episode.info.uid, episode.info.task, len(episode))
    inputs, found = EpisodeInputs(target, episode), {}

    def unshared(self: SharingForward, *args: Any) -> Any:
        return self._forward.predict(*args)

    for name, changes in BASES.items():
        configs = configurations(changes)

        def alone(configs: dict[str, Configuration] = configs) -> None:
            for config in configs.values():
                replay_episode(policy, config, episode, lambda: None)

        def turns(configs: dict[str, Configuration] = configs) -> None:
            _replayed(_OneStep(policy), configs, source, inputs)

        def encoders(turns: Callable[[], None] = turns) -> None:
            with patch.object(SharingForward, "predict", unshared):
                turns()

        times = [[milliseconds(side) for side in (alone, encoders, turns)] for _ in range(rounds)]
        cells = len(configs) * len(episode)
        found[name] = {
            "configurations": len(configs),
            "ms_per_step": median(one[2] for one in times) / cells,
            "over_alone": median(one[0] / one[2] for one in times),
            "over_shared_encoders": median(one[1] / one[2] for one in times),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("trace", nargs="?", default="sample")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.trace, options.rounds)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for name, row in found.items():
        print(
            f"{name:20} {row['ms_per_step']:6.1f} ms per configuration and step; {row['over_alone']:.2f} x as fast as "
            f"each alone, {row['over_shared_encoders']:.2f} x as with the encoders shared"
        )


if __name__ == "__main__":
    main()
