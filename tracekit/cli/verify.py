"""`tracekit verify`: is a store as it was written?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracekit.cli._console import JsonOption, console, print_json

__all__ = ["verify"]


def verify(
    trace: Annotated[Path, typer.Argument(help="Trace or saved replay to check.", metavar="STORE")],
    as_json: JsonOption = False,
) -> None:
    """Check every byte of a store against its checksums. Exit 0 clean, 1 damaged or cut off, 2 not a store."""
    from tracekit import store

    report = store.verify(trace)
    if as_json:
        print_json(report.to_json())
    else:
        screen = console()
        for problem in report.problems:
            screen.print(f"{problem.path} {problem.what}", highlight=False, markup=False)
        for note in report.notes:
            screen.print(f"note: {note}", highlight=False, markup=False)
        verdict = "clean" if report.clean else f"{len(report.problems)} problems: run `tracekit repair {trace}`"
        screen.print(
            f"{report.episodes} episodes, {report.files} files, {report.nbytes / 1e6:.1f} MB checked: {verdict}",
            highlight=False,
            markup=False,
        )
    raise typer.Exit(0 if report.clean else 1)
