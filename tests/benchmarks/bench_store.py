"""The trace store against NumPy's own files: `python -m tests.benchmarks.bench_store [FOLDER] [--json]`.

Every figure is a ratio within this run: the two sides take turns for several rounds, the medians are compared. Targets:
writing at most 1.5 times np.save + fsync of the same arrays, reading raw arrays at most 2 times np.load, and opening
200 episodes with all their steps and outcomes in under 100 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from tracekit.store import ArraySpec, EpisodeInfo, Trace, TraceWriter

ROUNDS = 7
READS = 31  # reading takes a millisecond or less, and other work on the machine disturbs some rounds
STEPS = 30
EPISODES = 200
SMALL = (3, 8, 4, 200)
LARGE = (1200, 1024)


def step_arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One step as a recording has it: twelve small arrays (77 kB each), one large one (4.9 MB)."""
    arrays = {f"observables/small{i}": rng.random(SMALL, np.float32) for i in range(12)}
    return {**arrays, "tokens/large": rng.random(LARGE, np.float32)}


def schema_of(arrays: dict[str, np.ndarray], scalars: dict[str, float]) -> dict[str, ArraySpec]:
    axes = {key: tuple(f"axis{i}" for i in range(array.ndim)) for key, array in arrays.items()}
    specs = {key: ArraySpec(array.dtype.name, array.shape, axes[key]) for key, array in arrays.items()}
    return specs | {key: ArraySpec("float64") for key in scalars}


def write_trace(path: Path, steps: list[dict[str, np.ndarray]]) -> None:
    scalars = {f"timing/stage{i}": float(i) for i in range(20)}
    schema = schema_of(steps[0], scalars)
    with TraceWriter.create(path, {}) as writer, writer.episode(EpisodeInfo("e"), schema) as episode:
        for arrays in steps:
            episode.append({**arrays, **scalars})


def write_npy(path: Path, steps: list[dict[str, np.ndarray]]) -> None:
    path.mkdir()
    for number, arrays in enumerate(steps):
        for key, array in arrays.items():
            with (path / f"{number}-{Path(key).name}.npy").open("wb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())


def write_stacked(path: Path, steps: list[dict[str, np.ndarray]]) -> None:
    path.mkdir()
    for key in steps[0]:
        with (path / f"{Path(key).name}.npy").open("wb") as file:
            np.save(file, np.stack([arrays[key] for arrays in steps]))


def seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def compare(
    ours: Callable[[], Any], theirs: Callable[[], Any], after: Callable[[], Any] = lambda: None, rounds: int = ROUNDS
) -> dict[str, Any]:
    """Medians in ms of both, taken in turns, and the median and spread of the ratio of each round."""
    pairs = []
    for _ in range(rounds + 1):
        pairs.append((seconds(ours), seconds(theirs)))
        after()
    pairs = pairs[1:]  # the first round warms the page cache
    ratios = sorted(mine / other for mine, other in pairs)
    return {
        "store_ms": round(1e3 * median(mine for mine, _ in pairs), 2),
        "numpy_ms": round(1e3 * median(other for _, other in pairs), 2),
        "ratio": round(median(ratios), 2),
        "ratio_spread": [round(ratios[0], 2), round(ratios[-1], 2)],
    }


def bench_writing(folder: Path, steps: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    def clean() -> None:
        for name in ("trace", "npy"):
            shutil.rmtree(folder / name)

    return compare(lambda: write_trace(folder / "trace", steps), lambda: write_npy(folder / "npy", steps), clean)


def bench_reading(folder: Path, steps: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    write_trace(folder / "read", steps)
    write_npy(folder / "each", steps)
    write_stacked(folder / "stacked", steps)
    episode = Trace.open(folder / "read").episode("e")
    found = {}
    for key in ("tokens/large", "observables/small3"):
        name = Path(key).name
        found[f"all steps of {name}"] = compare(
            lambda key=key: episode.read(key), lambda name=name: np.load(folder / f"stacked/{name}.npy"), rounds=READS
        )
        found[f"one step of {name}"] = compare(
            lambda key=key: episode.read(key, 7), lambda name=name: np.load(folder / f"each/7-{name}.npy"), rounds=READS
        )
    return found


def bench_opening(folder: Path) -> dict[str, Any]:
    schema = {"x": ArraySpec("float32", (4,), ("i",)), "t": ArraySpec("float64")}
    with TraceWriter.create(folder / "many", {}) as writer:
        for number in range(EPISODES):
            info = EpisodeInfo(f"close_box-{number}", task="close_box", instruction="close the box", uid=number)
            with writer.episode(info, schema) as episode:
                episode.append({"x": np.zeros(4, np.float32), "t": 0.0})
                episode.finish(success=True, attributes={"cameras": {"front": {"width": 640, "fx": 500.0}}})

    def list_all() -> list[tuple[int, bool | None]]:
        return [(info.steps, info.success) for info in Trace.open(folder / "many").episodes]

    assert list_all() == [(1, True)] * EPISODES
    times = sorted(1e3 * seconds(list_all) for _ in range(ROUNDS))
    return {"episodes": EPISODES, "ms": round(median(times), 2), "spread": [round(times[0], 2), round(times[-1], 2)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="where to write, on the disk that counts")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    steps = [step_arrays(rng) for _ in range(STEPS)]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        found = {
            "writing, against np.save + fsync": bench_writing(folder, steps),
            "reading, against np.load": bench_reading(folder, steps),
            "opening": bench_opening(folder),
        }
    if options.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    for what, figures in found.items():
        sys.stdout.write(f"{what}\n")
        rows = figures.items() if "against np.load" in what else [("", figures)]
        for row, values in rows:
            sys.stdout.write(f"  {row} {values}\n")


if __name__ == "__main__":
    main()
