"""What `killing` kills: a writer that continues a store by a short and a longer episode."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tests.tracekit.store.support import SCHEMA, samples_of, step_of
from tracekit.store import EpisodeInfo, TraceWriter

STEPS = {1: 2, 2: 18}
"""Steps by seed: the longer episode is flushed once before its end."""


def prepare() -> Callable[[Path, Callable[[str], None]], None]:
    os.fsync = lambda descriptor: None  # a killed process loses nothing that the system has
    return record


def record(path: Path, say: Callable[[str], None]) -> None:
    with TraceWriter.append(path, {}) as writer:
        for seed, steps in STEPS.items():
            with writer.episode(EpisodeInfo(f"ep-{seed}"), SCHEMA) as episode:
                for step in range(steps):
                    episode.append(step_of(seed, step))
                    episode.append_stream("arm", *samples_of(seed, step))
                    say(f"step {seed}")
                episode.finish(success=True)
            say(f"committed {seed}")
