"""`tracekit repair`: make a damaged or cut-off store whole again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracekit.cli._console import JsonOption, console, print_json

__all__ = ["repair"]


def repair(
    trace: Annotated[Path, typer.Argument(help="Trace or saved replay to repair.", metavar="STORE")],
    as_json: JsonOption = False,
) -> None:
    """Keep every good step of a damaged store; what is damaged is set aside inside it, never deleted."""
    from tracekit import store

    done = store.repair(trace)
    report = store.verify(trace)
    if as_json:
        print_json({**done.to_json(), "verified": report.to_json()})
    else:
        screen = console()
        for action in done.actions or ("nothing to repair",):
            screen.print(action, highlight=False, markup=False)
        screen.print(f"{report.episodes} episodes: {'clean' if report.clean else 'still damaged'}", highlight=False)
    raise typer.Exit(0 if report.clean else 1)
