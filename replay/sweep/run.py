"""A whole sweep: plan, compute what is missing, write the table, and say what stands out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from replay.source import TraceSource
from replay.sweep.best import Constraint, best, configuration_toml
from replay.sweep.cells import Level, Target, context_digest
from replay.sweep.flops import ModelSize, model_size
from replay.sweep.grid import Grid
from replay.sweep.grid_file import load_grid
from replay.sweep.plan import SweepPlan, refuse_empty, refuse_unusable
from replay.sweep.storage import SweepFolder
from replay.sweep.table import build_table, costs_of, front, objectives, per_configuration, refuse_unknown
from replay.sweep.worker import Done, compute
from tracekit.errors import ConfigError, TraceError
from tracekit.fingerprint import environment_fingerprint

__all__ = ["SweepResult", "sweep"]

CHUNK_STEPS = 20_000
"""Configuration steps that are computed and stored together in a decisions-only sweep: about a second's work."""

LARGEST_CHUNK = 2_000


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    `table`: the Parquet file; `summary`: one row per configuration, with `pareto`. `done`: counts over all chunks.
    `seconds`: computing and writing, reading the traces and starting processes included. `best`: name, digest, value
    and file of the best configuration, None if none was asked for.
    """

    grid: Grid
    level: Level
    table: Path
    summary: pl.DataFrame
    objectives: tuple[str, str]
    done: Done
    recorded_steps: int
    seconds: float
    policy_trained: bool
    best: dict[str, Any] | None = None

    @property
    def distinct_kmeans(self) -> int:
        """Different k-means problems of the whole grid: a clustering of every recorded step, per way of clustering."""
        return len(self.done.clusterings) * self.recorded_steps

    def to_json(self) -> dict[str, Any]:
        """The object that `sweep --json` prints."""
        done = self.done
        on_front = self.summary.filter(pl.col("pareto"))
        shown = [name for name in (*self.objectives, "kept_2d", "kept_3d") if name in on_front.columns]
        return {
            "grid": self.grid.name,
            "level": self.level,
            "open_loop": True,
            "policy_trained": self.policy_trained,
            "configurations": len(self.summary),
            "skipped": done.skipped,
            "cells": done.cells,
            "computed": done.computed,
            "steps": done.steps,
            "seconds": self.seconds,
            "cells_per_second": done.computed / self.seconds,
            "steps_per_second": done.computed_steps / self.seconds,
            "distinct_kmeans": self.distinct_kmeans,
            "table": str(self.table),
            "pareto": {
                "objectives": list(self.objectives),
                "count": len(on_front),
                "configurations": on_front.select("name", "configuration", *dict.fromkeys(shown)).head(100).to_dicts(),
            },
            "best": self.best,
        }


def sweep(
    traces: Sequence[str | Path],
    grid: str | Path | Grid,
    out: str | Path,
    *,
    level: Level = "decisions",
    episodes: Sequence[str] = (),
    policy: str | None = None,
    processes: int = 1,
    timing: bool = False,
    minimise: str | None = None,
    maximise: str | None = None,
    where: Sequence[Constraint] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> SweepResult:
    """Try every configuration of `grid` on every recorded episode of `traces`; results go to the folder `out`.

    What is in `out` already is not computed again, whatever grid it was computed for; a sweep that was killed goes on
    where it stopped, and ends with the same table. `level`: `decisions` from stored scores, or `forward` passes.
    `timing`: in a forward sweep, measure step times too, on a sample of the steps of each trace's first episode; needs
    the machine for itself, so one process. `minimise` or `maximise`: column of the best configuration, among those that
    meet `where`; it is written to `best.toml`. Open-loop: every step starts from the recorded observation.

    Raises ConfigError, TraceError or PolicyError (one line), before anything is computed where possible.
    """
    if processes < 1:
        raise ConfigError(f"--processes {processes}: give at least 1")
    if timing and (level == "decisions" or processes > 1):
        raise ConfigError("step times are measured in a forward sweep in one process; leave one of the two out")
    if minimise is not None and maximise is not None:
        raise ConfigError("--minimise and --maximise: give one of the two")
    if where and minimise is None and maximise is None:
        raise ConfigError("--where: say with --minimise or --maximise which configuration is the best of those left")
    column = minimise or maximise
    asked = [*([] if column is None else [column]), *(constraint.column for constraint in where)]
    refuse_unknown(asked, level, timing=timing)
    wanted = grid if isinstance(grid, Grid) else load_grid(grid)
    plan = replace(_plan(traces, wanted, level, episodes, policy), timing=timing)
    refuse_unusable(plan)  # before a folder is made
    folder = SweepFolder(out)
    folder.check_table(wanted.name)
    start = time.perf_counter()
    done = _carry_out(plan, folder, processes, progress)
    if not done.cells:
        refuse_empty(plan)
    table = build_table(plan, folder)
    summary = per_configuration(table)
    axes = objectives(summary, level)
    summary = summary.with_columns(pl.Series("pareto", front(costs_of(summary, axes))))
    table = table.join(summary.select("index", "pareto"), on="index", how="left", maintain_order="left")
    path = folder.write_table(wanted.name, table, _about(plan))
    seconds = time.perf_counter() - start
    recorded = sum(target.steps for target in plan.targets)
    trained = all(TraceSource(path).trace.attributes["policy"]["trained"] for path in traces)
    found = SweepResult(wanted, level, path, summary, axes, done, recorded, seconds, trained)
    return found if column is None else replace(found, best=_best(found, column, where, maximise is not None, folder))


def _plan(
    traces: Sequence[str | Path], grid: Grid, level: Level, episodes: Sequence[str], policy: str | None
) -> SweepPlan:
    if not traces:
        raise TraceError("no trace to sweep over; give at least one")
    targets: list[Target] = []
    contexts: dict[str, str] = {}
    sizes: dict[str, ModelSize | None] = {}
    for path in traces:
        source = TraceSource(path)
        digest = source.trace.digest
        if digest in contexts:
            raise TraceError(f"{path}: the same trace is given twice; give each once")
        if level == "decisions" and source.pruned_by is not None:
            raise TraceError(
                f"{path}: was pruned while it was recorded, and its passes show the kept tokens only; use --forward"
            )
        recorded = source.trace.attributes["policy"]
        about: dict[str, Any] = {"policy": [recorded["weights_digest"], recorded["config_digest"]]}
        if level == "forward":
            about["fingerprint"] = {k: v for k, v in environment_fingerprint().items() if k != "threads"}
        sizes[digest] = model_size(policy or recorded["name"], recorded["config_digest"])
        contexts[digest] = context_digest({**about, "size": repr(sizes[digest])})
        targets += [
            Target(str(path), digest, episode.info.id, int(episode.info.uid), episode.info.task, len(episode))
            for episode in source.episodes(episodes)
            if len(episode)
        ]
    steps = sum(target.steps for target in targets)
    if not steps:
        raise TraceError(f"{', '.join(map(str, traces))}: no recorded step; record an episode first")
    chunk = 8 if level == "forward" else max(1, min(LARGEST_CHUNK, CHUNK_STEPS // steps))
    return SweepPlan(grid, level, tuple(targets), contexts, sizes, chunk, policy)


def _carry_out(
    plan: SweepPlan, folder: SweepFolder, processes: int, progress: Callable[[str, int, int], None] | None
) -> Done:
    cells = computed = steps = computed_steps = skipped = 0
    posed: set[str] = set()
    total = len(plan.grid) * len(plan.targets)
    for done in compute(plan, folder.path, processes):
        cells, computed = cells + done.cells, computed + done.computed
        steps, computed_steps = steps + done.steps, computed_steps + done.computed_steps
        skipped += done.skipped
        posed |= done.clusterings
        if progress is not None:
            progress("sweeping", min(total, cells + skipped * len(plan.targets)), total)
    return Done(cells, computed, steps, computed_steps, frozenset(posed), skipped)


def _about(plan: SweepPlan) -> dict[str, Any]:
    return {
        "format": "tracekit.sweep.table",
        "open_loop": True,
        "level": plan.level,
        "grid": plan.grid.name,
        "grid_digest": plan.grid.digest,
        "traces": sorted(plan.contexts),
    }


def _best(
    found: SweepResult, column: str, where: Sequence[Constraint], largest: bool, folder: SweepFolder
) -> dict[str, Any] | None:
    path = folder.path / "best.toml"
    row = best(found.summary, column, where, largest=largest)
    if row is None:
        path.unlink(missing_ok=True)  # one that answered another question
        return None
    chosen = found.summary.row(row, named=True)
    config = found.grid.configuration(chosen["index"])
    assert config is not None  # noqa: S101  # it is in the table
    limits = "".join(f", {limit.column} {limit.comparison} {limit.bound:g}" for limit in where)
    comment = (
        f"{'largest' if largest else 'smallest'} {column} = {chosen[column]:.6g} of {len(found.summary)} configurations"
        f"{limits}\nOpen-loop: measured against recorded actions or tokens, not by success."
    )
    path.write_text(configuration_toml(config.to_json(), comment), "utf-8")
    return {"name": config.name, "configuration": config.digest, column: chosen[column], "toml": str(path)}
