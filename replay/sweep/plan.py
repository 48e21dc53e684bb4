"""What a sweep is asked to do, as one value for every process, and the configurations of a part of its grid."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from replay.decisions import refuse_undecidable
from replay.sources import program_digest
from replay.sweep.cells import Level, Target, address
from replay.sweep.decided import clustering_of
from replay.sweep.flops import ModelSize
from replay.sweep.grid import Grid
from replay.sweep.storage import SweepFolder
from tracekit.config import Configuration
from tracekit.digest import digest_json
from tracekit.errors import ConfigError, TraceError

__all__ = [
    "CELL_SCHEMA",
    "TIMING_SCHEMA",
    "Chunk",
    "SweepPlan",
    "method_digest",
    "plan_chunk",
    "refuse_empty",
    "refuse_unusable",
]

TRIED = 256
"""Configurations of a grid that are built before anything is computed, to see whether it can be used."""

CELL_SCHEMA: dict[str, Any] = {
    "address": pl.String,
    "configuration": pl.String,
    "trace_digest": pl.String,
    "episode_uid": pl.UInt64,
    "steps": pl.Int64,
    "kept_2d": pl.Float64,
    "kept_3d": pl.Float64,
    "rate_2d": pl.Float64,
    "rate_3d": pl.Float64,
    "effective_rate": pl.Float64,
    "gflops": pl.Float64,
    "decisions_digest": pl.String,
    "translation_mm": pl.Float64,
    "rotation_deg": pl.Float64,
    "gripper_flips": pl.Int64,
    "unclipped_relative": pl.Float64,
    "unpruned_relative": pl.Float64,
    "actions_digest": pl.String,
}
"""Columns of finished cells; a decisions-only cell has null where a forward pass would be needed."""


TIMING_SCHEMA: dict[str, Any] = {
    "timing": pl.String,
    "configuration": pl.String,
    "trace_digest": pl.String,
    "step_ms": pl.Float64,
    "step_spread_ms": pl.Float64,
    "time_ratio": pl.Float64,
    "speedup_encoders": pl.Float64,
    "speedup_reuse": pl.Float64,
    "speedup_pruning": pl.Float64,
}
"""Columns of finished timings, one row per configuration and trace, under their own address (`timing`).

`time_ratio`: step time as a share of that of the unpruned policy as released, both within the same rounds.
"""


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """`contexts`: trace digest -> what else results depend on. `policy`: given in place of the recorded one.

    `size`: trace digest -> widths of its policy, for the FLOPs. `chunk`: configurations that are planned, computed and
    stored together. `timing`: whether a forward sweep measures step times too.
    """

    grid: Grid
    level: Level
    targets: tuple[Target, ...]
    contexts: Mapping[str, str]
    sizes: Mapping[str, ModelSize | None]
    chunk: int
    policy: str | None = None
    timing: bool = False

    def address(self, configuration: str, target: Target) -> str:
        """Name of the cell of `configuration` (digest) and `target`."""
        return address(self.level, configuration, target, self.contexts[target.trace_digest])

    def timing_address(self, configuration: str, target: Target) -> str:
        """Name of the timing of `configuration` (digest) on the episode `target`."""
        return address("timing", configuration, target, self.contexts[target.trace_digest])

    @property
    def timed(self) -> tuple[Target, ...]:
        """The episodes that times are measured on: the first of each trace."""
        if not self.timing:
            return ()
        return tuple({target.trace_digest: target for target in reversed(self.targets)}.values())[::-1]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a grid: one row of `frame` per configuration (see `plan_chunk`).

    `configs`: those that were built for planning, by row; none where the plan was there already.
    """

    start: int
    stop: int
    frame: pl.DataFrame
    configs: Sequence[Configuration] = ()

    @property
    def skipped(self) -> int:
        """Numbers without a configuration, for being invalid or undecidable."""
        return self.stop - self.start - len(self.frame)


def plan_chunk(plan: SweepPlan, folder: SweepFolder, start: int) -> Chunk:
    """The configurations `start`, `start` + 1, …, planned once per folder.

    Columns: `index`, `name`, `kind`, `configuration` and `method` (digests), `clustering` (see `clustering_of`), and
    one per axis, under its dotted key.
    """
    stop = min(start + plan.chunk, len(plan.grid))
    identity = digest_json([plan.grid.digest, plan.chunk, plan.level, program_digest()])
    frame = folder.plan(identity, start)
    if frame is not None:
        return Chunk(start, stop, frame)
    configs = list(_usable(plan, range(start, stop)))
    frame = _frame(plan.grid, configs)
    folder.add_plan(identity, start, frame)
    return Chunk(start, stop, frame, tuple(config for _, config in configs))


def refuse_unusable(plan: SweepPlan) -> None:
    """Raise ConfigError or TraceError for a grid that cannot be used, as far as some of its configurations show it.

    Those are the first and, of a large grid, others drawn at random, the same every time. With `skip_invalid` a grid is
    refused if all of it was tried and left out.
    """
    count = len(plan.grid)
    tried = sorted({0, *random.Random(0).sample(range(count), min(count, TRIED))})  # noqa: S311  # no secret
    found = _usable(plan, tried)
    if not plan.grid.skip_invalid:
        deque(found, maxlen=0)
    elif next(found, None) is None and count <= TRIED:
        refuse_empty(plan)


def refuse_empty(plan: SweepPlan) -> None:
    """Raise ConfigError saying that every combination was left out, and why the first was."""
    strict = replace(plan, grid=replace(plan.grid, skip_invalid=False))
    try:
        next(_usable(strict, [0]), None)
    except (ConfigError, TraceError) as error:
        raise ConfigError(f"all {len(plan.grid)} combinations are left out; the first: {error}") from None


def _usable(plan: SweepPlan, numbers: Iterable[int]) -> Iterator[tuple[int, Configuration]]:
    """(number, configuration) of those that can be computed at the level of the sweep; see `Grid.configuration`."""
    for index in numbers:
        config = plan.grid.configuration(index)
        try:
            if config is not None and plan.level == "decisions":
                refuse_undecidable(config)
        except TraceError:
            if not plan.grid.skip_invalid:
                raise
            continue
        if config is not None:
            yield index, config


def method_digest(table: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a configuration's tables less name and execution: the same method, however it is computed."""
    return digest_json({key: value for key, value in table.items() if key not in {"name", "execution"}})


def _frame(grid: Grid, configs: Sequence[tuple[int, Configuration]]) -> pl.DataFrame:
    base = {key: _plain(_lookup(grid.base, key)) for key in grid.axes}
    rows = [
        {
            "index": index,
            "name": config.name,
            "kind": config.kind,
            "configuration": config.digest,
            "method": method_digest(config.to_json()),
            "clustering": clustering_of(config),
            **base,
            **{key: _plain(value) for key, value in grid.point(index).items()},
        }
        for index, config in configs
    ]
    texts = dict.fromkeys(("name", "kind", "configuration", "method", "clustering"), pl.String)
    axes = {key: _dtype(grid, key, base[key]) for key in grid.axes}
    return pl.DataFrame(rows, schema={"index": pl.Int64, **texts, **axes}, strict=False)


def _lookup(table: Mapping[str, Any], key: str) -> Any:
    value: Any = table
    for part in key.split("."):
        value = value[part]
    return value


def _plain(value: Any) -> Any:
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else value


def _dtype(grid: Grid, key: str, base: Any) -> Any:
    axis = grid.axes[key]
    values = [base, *(map(_plain, axis) if isinstance(axis, tuple) else (axis.low, axis.high))]
    if all(isinstance(value, bool) for value in values):
        return pl.Boolean
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if not numbers:
        return pl.String
    return pl.Int64 if all(isinstance(value, int) for value in values) else pl.Float64
