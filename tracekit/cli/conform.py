"""`tracekit conform`: does our MLA compute what the public release computed?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from tracekit.cli._console import JsonOption, console, print_json

__all__ = ["conform"]


def conform(
    directory: Annotated[Path, typer.Argument(help="Run directory beside golden.json and golden.npz.", metavar="DIR")],
    statistics: Annotated[
        str | None, typer.Option(help="Key in dataset_statistics.json, where it has several.", metavar="KEY")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute a golden file of the MLA release on its checkpoint; exit code 1 where an array is out of tolerance."""
    from tracekit.model import ReleaseOptions
    from tracekit.model.conform import conform as recompute

    report = recompute(directory, ReleaseOptions(statistics=statistics))
    if as_json:
        print_json(report.to_json())
    else:
        table = Table(title=f"{directory}: max|ours − theirs| / max|theirs|", title_justify="left")
        table.add_column("array")
        table.add_column("relative error", justify="right")
        table.add_column("verdict")
        for name, result in (*report.arrays.items(), ("prefix kept, FPS pinned", report.prefix_kv)):
            table.add_row(name, f"{result.rel_error:.1e}", "pass" if result.ok else Text("FAIL", style="bold red"))
        screen = console()
        screen.print(table)
        screen.print(
            f"Pinning FPS to pass 0 changes the unclipped action by {report.pinning:.1e} (no error, no verdict)."
        )
        if report.unknown:
            screen.print(f"Not checked, as no array of this name is known: {', '.join(report.unknown)}.")
        if report.absent:
            screen.print(f"Not in the file, and so not checked: {', '.join(report.absent)}.")
    if not report.ok:
        raise typer.Exit(1)
