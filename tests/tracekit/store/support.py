"""Small episodes that hold every kind of array the store knows, and their exact contents for comparison."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from tracekit.store import ArraySpec, EpisodeInfo, Trace, TraceWriter

SCHEMA = {
    "observation/images/front": ArraySpec("uint8", (6, 5, 3), ("row", "column", "channel"), codec="zstd"),
    "observables/attention": ArraySpec("float32", (3, 4, 5), ("query_group", "head", "token")),
    "hidden/last": ArraySpec("bfloat16", (4,), ("width",), codec="zstd1"),
    "tokens/kept": ArraySpec("bool", (7,), ("token",)),
    "depth": ArraySpec("float32", (2, 2), ("row", "column"), unit="m", optional=True, attributes={"along": "axis"}),
    "reward": ArraySpec("float64", optional=True),
    "never": ArraySpec("float32", (2,), ("x",), optional=True),
    "nothing": ArraySpec("float32", (0, 3), ("point", "xyz")),
    "timing/wall": ArraySpec("int64", unit="ns", attributes={"clock": "monotonic"}),
    "timing/load": ArraySpec("float64"),
    "timing/heat": ArraySpec("float64", unit="K"),
    "streams/arm/time_ns": ArraySpec("int64", unit="ns"),
    "streams/arm/value": ArraySpec("float64", (2,), ("joint",), unit="rad"),
}

SPARSE = {
    key: replace(spec, optional=True) if key.startswith(("hidden/", "observation/", "tokens/")) else spec
    for key, spec in SCHEMA.items()
}
"""The same with more that a step may lack."""


def step_of(seed: int, step: int) -> dict[str, np.ndarray | float]:
    rng = np.random.default_rng([seed, step])
    values: dict[str, np.ndarray | float] = {
        "observation/images/front": rng.integers(0, 255, (6, 5, 3), np.uint8),
        "observables/attention": rng.random((3, 4, 5), np.float32),
        "hidden/last": rng.integers(0, 2**16, 4, np.uint16),
        "tokens/kept": rng.random(7) < 0.5,
        "nothing": np.zeros((0, 3), np.float32),
        "timing/wall": int(rng.integers(2**60)),
        "timing/load": float(rng.random()),
        "timing/heat": np.float64(rng.random()),
    }
    if step % 2:
        values["depth"] = rng.random((2, 2), np.float32)
        values["reward"] = float(rng.random())
    return values


def samples_of(seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, step, 1])
    return np.arange(3) + 3 * step, rng.random((3, 2))


def record(writer: TraceWriter, name: str, steps: int, seed: int = 0, schema: Mapping[str, ArraySpec] = SCHEMA) -> None:
    info = EpisodeInfo(name, task="close_box", instruction="close the box", uid=2**63 + seed)
    with writer.episode(info, schema) as ep:
        for step in range(steps):
            ep.append(step_of(seed, step))
            ep.append_stream("arm", *samples_of(seed, step))
        ep.finish(success=seed % 2 == 0, attributes={"seed": seed})


def expected(key: str, steps: int, seed: int) -> np.ndarray:
    if key.startswith("streams/"):
        parts = [samples_of(seed, step)[key.endswith("value")] for step in range(steps)]
        return np.concatenate(parts) if parts else np.zeros((0, 2) if key.endswith("value") else 0)
    absent = np.full(SCHEMA[key].shape, SCHEMA[key].fill, SCHEMA[key].storage)
    return np.array([step_of(seed, step).get(key, absent) for step in range(steps)]).reshape(steps, *SCHEMA[key].shape)


def check_episode(trace: Trace, name: str, steps: int, seed: int) -> None:
    """All arrays of an episode made by `record`, bit for bit."""
    episode = trace.episode(name)
    optional = {key for key, spec in SCHEMA.items() if spec.optional}
    absent = optional if steps < 2 else {"never"}
    assert episode.keys() == tuple(sorted(SCHEMA.keys() - absent))
    for key in episode:
        np.testing.assert_array_equal(episode.read(key), expected(key, steps, seed), strict=steps > 0)


def check_prefix(trace: Trace, name: str, steps: int, seed: int, samples: int) -> None:
    """The first `steps` steps and `samples` samples of an episode made by `record`, and nothing more."""
    episode = trace.episode(name)
    assert episode.info.steps == steps
    optional = {key for key, spec in SCHEMA.items() if spec.optional}
    assert set(episode.keys()) == SCHEMA.keys() - (optional if steps < 2 else {"never"})
    for key in episode:
        whole = expected(key, samples if key.startswith("streams/") else steps, seed)
        np.testing.assert_array_equal(episode.read(key), whole[:samples] if key.startswith("streams/") else whole)


def contents(path: Path) -> dict[str, bytes]:
    """Every file of a folder but the lock, by its path."""
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file() and f.name != "lock"}


def leave_cut_off(path: Path, name: str, steps: int, seed: int) -> None:
    """A running episode as a killed process leaves it: its files are simply there."""
    copy = path.with_name(path.name + ".cut")
    with TraceWriter.append(path, {}) as writer, writer.episode(EpisodeInfo(name, task="t", uid=5), SCHEMA) as episode:
        for step in range(steps):
            episode.append(step_of(seed, step))
            episode.append_stream("arm", *samples_of(seed, step))
        shutil.copytree(path, copy)
    shutil.rmtree(path)
    copy.rename(path)
