"""What a sweep found, for the terminal: its Pareto front and its best configuration."""

from __future__ import annotations

from typing import Any

import polars as pl
from rich.console import Group
from rich.text import Text

from replay.sweep import SweepResult
from reports.tables import comparison_table

__all__ = ["sweep_table"]

SHOWN = 15
"""Rows of the front that are printed; the Parquet table has them all."""

COLUMNS = {
    "time_ratio": ("time", "{:.3f}"),
    "step_ms": ("step ms", "{:.1f}"),
    "gflops": ("LM GFLOP", "{:.4g}"),
    "kept_2d": ("kept 2D", "{:.0f}"),
    "kept_3d": ("kept 3D", "{:.0f}"),
    "effective_rate": ("eff. %", "{:.1%}"),
    "unclipped_relative": ("deviation", "{:.4f}"),
    "unpruned_relative": ("unpruned", "{:.4f}"),
    "translation_mm": ("mm", "{:.1f}"),
    "rotation_deg": ("degrees", "{:.1f}"),
    "gripper_flips": ("flips", "{}"),
}
"""Column of the summary -> heading and format."""


def sweep_table(found: SweepResult, *, constrained: bool = False) -> Group:
    """The Pareto front of a sweep, cheapest first, and what its columns mean.

    `constrained`: a best configuration was asked for; it is said if there is none.
    """
    data = found.to_json()
    first, second = found.objectives
    rows = found.summary.filter(pl.col("pareto")).sort(first, maintain_order=True)
    count = f"{data['configurations']:,} configurations, {data['cells']:,} cells, {data['steps']:,} configuration steps"
    table = comparison_table(f"Open-loop, {count}: Pareto front of {first} against {second}")
    shown = [name for name in COLUMNS if name in rows.columns]
    for name in shown:
        table.add_column(COLUMNS[name][0], justify="right", no_wrap=True)
    for row in rows.head(SHOWN).iter_rows(named=True):
        table.add_row(row["name"], *(COLUMNS[name][1].format(row[name]) for name in shown))
    notes = _notes(found, data, len(rows))
    if constrained and found.best is None:
        notes.append("No configuration meets the constraints.")
    return Group(table, Text("\n".join(notes), style="dim"))


def _notes(found: SweepResult, data: dict[str, Any], on_front: int) -> list[str]:
    lines = [
        f"{data['computed']:,} cells computed in {data['seconds']:.1f} s "
        f"({data['steps_per_second']:,.0f} configuration steps per second), the others were there."
        if data["computed"]
        else "Every cell was there already."
    ]
    if data["distinct_kmeans"]:
        lines.append(f"{data['distinct_kmeans']:,} different k-means problems; what configurations share is done once.")
    if on_front > SHOWN:
        lines.append(f"{on_front - SHOWN} more are on the front: column `pareto` of the table.")
    if data["skipped"]:
        undecidable = " or need forward passes (--forward)" if data["level"] == "decisions" else ""
        lines.append(f"{data['skipped']} combinations are no valid configuration{undecidable} and were left out.")
    if found.level == "decisions":
        lines.append("Tokens and operations only: what is lost by them, `--forward` or `tracekit evaluate` measures.")
    else:
        lines.append(
            "deviation: ‖a − b‖ / ‖b‖ of the sampler's outputs against the recorded ones; unpruned: without pruning."
        )
    lines.append("Open-loop: every step starts from the recorded observation; success is another question.")
    if not found.policy_trained:
        lines.append("The recorded policy has random weights: this shows the mechanism, not a skill.")
    if found.best is not None:
        lines.append(f"Best: {found.best['name']}, in {found.best['toml']}.")
    lines.append(f"Table: {found.table}")
    return lines
