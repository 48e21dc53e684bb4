"""The table of a sweep: one row per configuration and episode, in the grid's order, however the cells were computed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from replay.sweep.cells import Level, Target
from replay.sweep.plan import CELL_SCHEMA, SweepPlan, plan_chunk
from replay.sweep.storage import SweepFolder
from tracekit._fields import nearest
from tracekit.errors import ConfigError, TraceError

__all__ = ["build_table", "front", "per_configuration", "refuse_unknown"]

ORDER = "episode_order"
MEANS = (
    "kept_2d",
    "kept_3d",
    "rate_2d",
    "rate_3d",
    "effective_rate",
    "gflops",
    "translation_mm",
    "rotation_deg",
    "unclipped_relative",
    "unpruned_relative",
    "step_ms",
    "time_ratio",
)
"""Columns that are means over steps, and are averaged over episodes by their steps."""

FORWARD_ONLY = (
    "translation_mm",
    "rotation_deg",
    "gripper_flips",
    "unclipped_relative",
    "unpruned_relative",
    "actions_digest",
)


TIMED = ("step_ms", "time_ratio")


def refuse_unknown(names: Iterable[str], level: Level, *, timing: bool) -> None:
    """Raise ConfigError for one of `names` that is no column of `per_configuration` in a sweep of that `level`."""
    without = {*(() if timing else TIMED), *(FORWARD_ONLY if level == "decisions" else ())}
    known = [name for name in ("steps", "gripper_flips", *MEANS) if name not in without]
    for name in names:
        if name not in known:
            raise ConfigError(f"{name!r} is no column of this sweep's configurations; {nearest(name, known)}")


def build_table(plan: SweepPlan, folder: SweepFolder) -> pl.DataFrame:
    """All cells of the sweep; raises TraceError if one is not finished."""
    plans = pl.concat([plan_chunk(plan, folder, start).frame for start in range(0, len(plan.grid), plan.chunk)])
    wanted = plans["configuration"].unique()
    digests = [target.trace_digest for target in plan.targets]
    parts = [
        part.filter(pl.col("trace_digest").is_in(digests) & pl.col("configuration").is_in(wanted.implode()))
        for part in folder.parts()
    ]
    cells = pl.concat(parts or [pl.DataFrame(schema=CELL_SCHEMA)]).unique("address", keep="first")
    table = pl.concat([_episode(plan, place, target, plans, cells) for place, target in enumerate(plan.targets)])
    missing = table["decisions_digest"].null_count()
    if missing:
        raise TraceError(f"{folder.path}: {missing} cells are not finished; run the same sweep again")
    if plan.timing:
        table = _with_times(table, plan, folder)
    table = table.sort("index", ORDER, maintain_order=True).drop(ORDER, "clustering")
    return table.drop(FORWARD_ONLY) if plan.level == "decisions" else table


def _with_times(table: pl.DataFrame, plan: SweepPlan, folder: SweepFolder) -> pl.DataFrame:
    """The table with the step times of every configuration and trace."""
    times = pl.concat(list(folder.parts("timings"))).unique("timing", keep="first")
    digests = table["configuration"].unique().to_list()
    wanted = {plan.timing_address(digest, target) for digest in digests for target in plan.timed}
    times = times.filter(pl.col("timing").is_in(list(wanted))).drop("timing")
    return table.join(times, on=("configuration", "trace_digest"), how="left", maintain_order="left")


def _episode(plan: SweepPlan, place: int, target: Target, plans: pl.DataFrame, cells: pl.DataFrame) -> pl.DataFrame:
    addresses = [plan.address(digest, target) for digest in plans["configuration"].to_list()]
    about = {
        "level": plan.level,
        "open_loop": True,
        "trace": Path(target.trace).name,
        "episode": target.episode,
        "task": target.task,
    }
    results = cells.drop("configuration")
    return (
        plans.with_columns(
            pl.Series("address", addresses),
            *(pl.lit(value).alias(name) for name, value in about.items()),
            pl.lit(place).alias(ORDER),
        )
        .join(results, on="address", how="left", maintain_order="left")
        .drop("address")
    )


def per_configuration(table: pl.DataFrame) -> pl.DataFrame:
    """One row per configuration: means over the steps of all episodes, sums of `steps` and `gripper_flips`."""
    weight = pl.col("steps")
    means = [
        ((pl.col(name) * weight).sum() / weight.sum()).alias(name)
        for name in MEANS
        if name in table.columns and table[name].null_count() == 0
    ]
    sums = [pl.col(name).sum() for name in ("steps", "gripper_flips") if name in table.columns]
    firsts = [pl.col(name).first() for name in ("name", "kind", "method") if name in table.columns]
    return table.group_by("index", "configuration", maintain_order=True).agg(*firsts, *sums, *means)


def front(costs: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """(n,) which rows of `costs` (n, 2), both to be small, no other row beats: as good in both and better in one.

    Rows with a NaN are never on the front; equal rows are all on it or all off it.
    """
    known = np.flatnonzero(np.isfinite(costs).all(1))
    on = np.zeros(len(costs), np.bool_)
    order = known[np.lexsort((costs[known, 1], costs[known, 0]))]
    lowest, at = np.inf, np.inf
    for row in order.tolist():
        x, y = costs[row].tolist()
        if y < lowest:
            lowest, at = y, x
        on[row] = y == lowest and x == at
    return on


def objectives(summary: pl.DataFrame, level: str) -> tuple[str, str]:
    """The two columns that the Pareto front is about; `kept`: tokens of both modalities, to be many."""
    cheap = next(name for name in ("time_ratio", "gflops", "effective_rate") if name in summary.columns)
    return cheap, "kept" if level == "decisions" else "unclipped_relative"


def costs_of(summary: pl.DataFrame, names: Sequence[str]) -> npt.NDArray[np.float64]:
    """(configurations, 2) the columns `names`, as numbers to be small; NaN where they are not known."""
    columns: list[Any] = []
    for name in names:
        if name == "kept":
            columns.append(-(summary["kept_2d"] + summary["kept_3d"]).to_numpy())
        elif name in summary.columns:
            values = summary[name].to_numpy().astype(np.float64)
            columns.append(-values if name == "effective_rate" else values)
        else:
            columns.append(np.full(len(summary), np.nan))
    return np.stack(columns, axis=1)
