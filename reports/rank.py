"""Does the open loop predict the closed one? Ranks of configurations by offline deviation and by success, compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from rich.console import Group
from rich.text import Text
from scipy.stats import kendalltau

from replay.sweep import method_digest
from reports.tables import comparison_table
from tracekit._fields import nearest
from tracekit.errors import TraceError

__all__ = ["RankedConfiguration", "Ranking", "Tau", "rank", "rank_table"]

LEVEL = 0.95
FEWEST = 3
_BLIND = "blind"
"""Name of the row of a policy without eyes in an evaluation."""


@dataclass(frozen=True, slots=True)
class Tau:
    """Kendall's τ-b between -deviation and success rate: 1 where the open loop ranks as the closed one, 0 by chance.

    None where one of the two is the same for all configurations. `interval`: 95 %, percentiles of a bootstrap over the
    paired seeds. `undefined`: resamples without a τ, which are left out of it.
    """

    tau_b: float | None
    interval: tuple[float, float] | None
    undefined: int


@dataclass(frozen=True, slots=True)
class RankedConfiguration:
    """One configuration in both loops; rank 1 is the smallest deviation, and the highest success rate."""

    name: str
    deviation: float
    success_rate: float
    rank_offline: float
    rank_closed: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """`column`: the deviation that ranks. `tasks`: what both are restricted to. `left_out`: names in one of the two.

    `blind`: success rate of the policy without eyes on the same tasks and seeds, which no deviation ranks; None where
    it was not evaluated.
    """

    column: str
    tasks: tuple[str, ...]
    seeds: int
    resamples: int
    configurations: tuple[RankedConfiguration, ...]
    overall: Tau
    by_task: Mapping[str, Tau]
    left_out: tuple[str, ...]
    blind: float | None

    def to_json(self) -> dict[str, Any]:
        """The object that `report rank --json` prints."""
        return {
            "by": self.column,
            "open_loop": True,
            "tasks": list(self.tasks),
            "seeds": self.seeds,
            "resamples": self.resamples,
            **_tau_json(self.overall),
            "by_task": {task: _tau_json(tau) for task, tau in self.by_task.items()},
            "configurations": [asdict(configuration) for configuration in self.configurations],
            "left_out": list(self.left_out),
            "blind": self.blind,
        }


@dataclass(frozen=True, slots=True)
class _Closed:
    """One configuration's closed loop: its name, and task -> seed -> success."""

    name: str
    by_seed: Mapping[str, Mapping[str, bool]]


def rank(
    sweep: str | Path,
    evaluation: str | Path,
    *,
    column: str = "unclipped_relative",
    resamples: int = 2000,
    seed: int = 0,
) -> Ranking:
    """Compare the table of a forward sweep with what `tracekit evaluate --json` printed.

    Configurations are matched by pruner, observation and reuse, not by name. Both sides are restricted to the tasks
    that both have. Raises TraceError (one line) where a file cannot be used or has too little in common with the other.
    """
    table = _table(Path(sweep), column)
    cases = _cases(Path(evaluation))
    closed = {method: one for method, one in cases.items() if method != _BLIND}
    tasks = sorted({*table["task"].unique()} & {task for one in closed.values() for task in one.by_seed})
    if not tasks:
        raise TraceError(f"{sweep} and {evaluation} have no task in common; sweep over traces of the evaluated tasks")
    methods = [method for method in closed if method in set(table["method"])]
    if len(methods) < FEWEST:
        raise TraceError(
            f"{sweep} and {evaluation} have {len(methods)} configurations in common; a rank correlation needs at least "
            f"{FEWEST}, better 12: evaluate the sweep's configurations"
        )
    seeds = sorted(set.intersection(*(set(closed[m].by_seed.get(t, ())) for m in methods for t in tasks)))
    if not seeds:
        raise TraceError(f"{evaluation}: no seed was run with every configuration and task; run them on the same seeds")
    won = np.array([[[closed[m].by_seed[t][s] for s in seeds] for t in tasks] for m in methods], np.float64)
    deviations = np.array([[_deviation(table, m, [t], column) for t in tasks] for m in methods])
    overall = np.array([_deviation(table, m, tasks, column) for m in methods])
    resampled = np.random.default_rng(seed).integers(0, len(seeds), (resamples, len(seeds)))
    rates = won.mean((1, 2))
    names = dict(table.select("method", "name").iter_rows())
    left_out = [names[m] for m in names if m not in methods] + [closed[m].name for m in closed if m not in methods]
    order = np.argsort(overall, kind="stable")
    ranks = _ranks(overall), _ranks(-rates)
    return Ranking(
        column=column,
        tasks=tuple(tasks),
        seeds=len(seeds),
        resamples=resamples,
        configurations=tuple(
            RankedConfiguration(
                closed[methods[i]].name, float(overall[i]), float(rates[i]), float(ranks[0][i]), float(ranks[1][i])
            )
            for i in order.tolist()
        ),
        overall=_tau(overall, won.mean(1), resampled),
        by_task={task: _tau(deviations[:, i], won[:, i], resampled) for i, task in enumerate(tasks)},
        left_out=tuple(sorted(left_out)),
        blind=_success(cases.get(_BLIND), tasks, seeds),
    )


def rank_table(found: Ranking) -> Group:
    """The ranks side by side, and what the correlation says."""
    table = comparison_table(
        f"Open loop against closed loop, {', '.join(found.tasks)}, {found.seeds} paired seeds each"
    )
    for heading in (f"offline {found.column}", "rank", "closed-loop success", "rank"):
        table.add_column(heading, justify="right")
    for row in found.configurations:
        success = f"{100 * row.success_rate:.0f} %"
        table.add_row(row.name, f"{row.deviation:.4f}", f"{row.rank_offline:g}", success, f"{row.rank_closed:g}")
    if found.blind is not None:
        table.add_row("blind", "", "", f"{100 * found.blind:.0f} %", "")
    lines = [f"Kendall's τ-b between small deviation and success: {_shown(found.overall)}."]
    lines += [f"  {task}: {_shown(tau)}" for task, tau in found.by_task.items() if len(found.by_task) > 1]
    lines.append(f"Intervals: 95 %, {found.resamples} resamples of the seeds, the same for all configurations.")
    if found.overall.tau_b is None:
        lines.append("Not defined: all deviations, or all success rates, are equal.")
    if found.left_out:
        lines.append(f"In one of the two files only: {len(found.left_out)} configurations.")
    return Group(table, Text("\n".join(lines), style="dim"))


def _table(path: Path, column: str) -> pl.DataFrame:
    try:
        table = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError):
        raise TraceError(f"{path}: no Parquet table can be read here; give the table of a sweep") from None
    if not {"method", "name", "task", "steps", "level"} <= set(table.columns):
        raise TraceError(f"{path}: not the table of a sweep; give the Parquet file that `tracekit sweep` wrote")
    if set(table["level"]) != {"forward"}:
        raise TraceError(f"{path}: a sweep of decisions has no actions; sweep again with --forward")
    numbers = [name for name, dtype in table.schema.items() if dtype.is_float()]
    if column not in numbers:
        raise TraceError(f"{path}: --by {column}: no such column; {nearest(column, numbers)}")
    if table[column].null_count():
        raise TraceError(f"{path}: {column} is not known of every cell; the traces lack recorded actions")
    unclear = table.filter(~pl.col(column).is_finite())["name"].unique(maintain_order=True).to_list()
    if unclear:
        names = ", ".join(unclear[:3])
        raise TraceError(f"{path}: {column} of {names} is no finite number; leave these out of the grid")
    return table


def _cases(path: Path) -> dict[str, _Closed]:
    """Method digest -> configuration, and `_BLIND` -> the policy without eyes; other controls left out."""
    try:
        found = {}
        for case in json.loads(path.read_text("utf-8"))["configurations"]:
            control = case["wrong_instruction"] or case["configuration"]["pruner"]["kind"] == "drop"
            if not control or case["name"] == _BLIND:
                method = _BLIND if control else method_digest(case["configuration"])
                found[method] = _Closed(case["name"], case["by_seed"])
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror}); give what `evaluate --json` printed") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise TraceError(f"{path}: not an evaluation; give what `tracekit evaluate --json` printed") from None
    return found


def _success(case: _Closed | None, tasks: Sequence[str], seeds: Sequence[str]) -> float | None:
    """Success rate of `case`, None where there is none or it lacks one of the episodes."""
    if case is None or not all(seed in case.by_seed.get(task, ()) for task in tasks for seed in seeds):
        return None
    return float(np.mean([case.by_seed[task][seed] for task in tasks for seed in seeds]))


def _deviation(table: pl.DataFrame, method: str, tasks: Sequence[str], column: str) -> float:
    rows = table.filter((pl.col("method") == method) & pl.col("task").is_in(tasks))
    return float(np.average(rows[column].to_numpy(), weights=rows["steps"].to_numpy()))


def _tau(deviation: npt.NDArray[np.float64], won: npt.NDArray[np.float64], resampled: npt.NDArray[np.int64]) -> Tau:
    """`deviation` (configurations,), `won` (configurations, seeds), `resampled` (resamples, seeds) places of seeds."""
    whole = _kendall(deviation, won.mean(1))
    found = [_kendall(deviation, won[:, places].mean(1)) for places in resampled]
    defined = np.array([tau for tau in found if tau is not None])
    if whole is None or not len(defined):
        return Tau(whole, None, len(found) - len(defined))
    low, high = np.quantile(defined, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)).tolist()
    return Tau(whole, (low, high), len(found) - len(defined))


def _kendall(deviation: npt.NDArray[np.float64], success: npt.NDArray[np.float64]) -> float | None:
    if np.ptp(deviation) == 0 or np.ptp(success) == 0:
        return None
    return float(kendalltau(-deviation, success, variant="b").statistic)


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(n,) ranks from 1, equal values sharing the mean of theirs."""
    below = (values[None, :] < values[:, None]).sum(1)
    return np.asarray(below + ((values[None, :] == values[:, None]).sum(1) + 1) / 2, np.float64)


def _tau_json(tau: Tau) -> dict[str, Any]:
    interval = None if tau.interval is None else list(tau.interval)
    return {"tau_b": tau.tau_b, "interval": interval, "undefined": tau.undefined}


def _shown(tau: Tau) -> str:
    if tau.tau_b is None:
        return "not defined"
    if tau.interval is None:
        return f"{tau.tau_b:.2f}"
    return f"{tau.tau_b:.2f} ({tau.interval[0]:.2f} to {tau.interval[1]:.2f})"
