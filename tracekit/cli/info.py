"""`tracekit info`: what is in a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from tracekit.cli._console import JsonOption, console, print_json
from tracekit.samples import packaged_trace
from tracekit.store import Trace

__all__ = ["info"]


def info(
    trace: Annotated[Path, typer.Argument(help="Trace to describe.", metavar="TRACE")],
    as_json: JsonOption = False,
) -> None:
    """Show what a trace holds: its episodes, the policy, how it was captured."""
    opened = Trace.open(packaged_trace(trace))
    data = describe(opened)
    if as_json:
        print_json(data)
        return
    screen = console()
    what = f"{data['kind']} trace, format {data['format']} {data['format_version']}, {data['bytes'] / 1e6:.1f} MB"
    table = Table(title=f"{trace}: {what}", title_justify="left")
    for name in ("episode", "task", "instruction", "seed", "steps", "success"):
        table.add_column(name)
    for episode in data["episodes"]:
        cells = {key: _cell(episode[key]) for key in ("id", "task", "instruction", "seed", "steps", "success")}
        if episode["truncated"]:
            cells["steps"] += " (cut off)"
        table.add_row(*cells.values())
    screen.print(table)
    policy = data["policy"]
    if policy is not None:
        screen.print(
            f"policy {policy['name']}: {policy['parameters']:,} parameters, weights {policy['weights_digest'][:12]}"
            f"{'' if policy['trained'] else ' (random, untrained)'}; driven by: {data['driver']}",
            highlight=False,
        )


def describe(trace: Trace) -> dict[str, Any]:
    """The object that `info --json` prints."""
    attributes = trace.attributes
    return {
        "format": trace.format,
        "format_version": trace.version,
        "kind": attributes.get("kind"),
        "episodes": [
            {
                "id": episode.id,
                "task": episode.task,
                "instruction": episode.instruction,
                "seed": episode.seed,
                "steps": episode.steps,
                "success": episode.success,
                "truncated": episode.truncated,
            }
            for episode in trace.episodes
        ],
        "policy": attributes.get("policy"),
        "driver": attributes.get("driver"),
        "execution": attributes.get("execution"),
        "capture": attributes.get("capture"),
        "bytes": trace.nbytes,
    }


def _cell(value: Any) -> str:
    return (
        {True: "yes", False: "no", None: "–"}.get(value, str(value)) if isinstance(value, bool | None) else str(value)
    )
