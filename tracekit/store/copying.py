"""Rewriting a trace through the writer, so that all its checksums hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit.store.episode_writer import EpisodeWriter
from tracekit.store.identity import TRACE_FORMAT
from tracekit.store.reader import Episode, Trace
from tracekit.store.schema import STREAMS, stream_of
from tracekit.store.writer import TraceWriter

__all__ = ["copy_episode", "copy_trace"]

Edit = Callable[[str, str, npt.NDArray[Any]], npt.NDArray[Any]]


def copy_trace(
    source: str | Path,
    target: str | Path,
    *,
    drop: Callable[[str], bool] | None = None,
    edit: Edit | None = None,
    format: str = TRACE_FORMAT,  # noqa: A002 - it is what the store's attributes call it
) -> None:
    """Copy the trace `source` to the new path `target`, without the keys for which `drop(key)`, others as edited.

    `edit(episode_id, key, array)` gets all steps (steps, …) and returns as many, possibly of another shape or dtype;
    bfloat16 arrays stay uint16 bits. Raises TraceError as opening, reading and writing do.
    """
    trace = Trace.open(source, format)
    with TraceWriter.create(target, trace.attributes, format) as writer:
        for info in trace.episodes:
            copy_episode(trace.episode(info.id), writer, drop, edit)


def copy_episode(episode: Episode, writer: TraceWriter, drop: Callable[[str], bool] | None, edit: Edit | None) -> None:
    """Write one episode again, as `copy_trace` does."""
    kept = [key for key in episode if drop is None or not drop(key)]
    arrays = {key: episode.read(key) for key in kept}
    if edit is not None:
        arrays = {key: edit(episode.info.id, key, array) for key, array in arrays.items()}
    schema = {}
    for key in kept:
        spec = episode.spec(key)
        dtype = spec.dtype if arrays[key].dtype == spec.storage else arrays[key].dtype.name
        schema[key] = replace(spec, dtype=dtype, shape=arrays[key].shape[1:])
    present = {key: episode.present(key) for key in kept}
    info = replace(episode.info, steps=0, success=None, nbytes=0)
    with writer.episode(info, schema) as copy:
        for step in range(episode.info.steps):
            copy.append({key: arrays[key][step] for key in kept if stream_of(key) is None and present[key][step]})
        _copy_streams(copy, arrays)
        copy.finish(success=episode.info.success)


def _copy_streams(copy: EpisodeWriter, arrays: dict[str, npt.NDArray[Any]]) -> None:
    for name in {stream_of(key) for key in arrays} - {None}:
        value = np.asarray(arrays[f"{STREAMS}{name}/value"])
        copy.append_stream(str(name), arrays[f"{STREAMS}{name}/time_ns"], value)
