"""`tracekit prune-store`: delete arrays that are no longer wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracekit.cli._console import JsonOption, console, print_json

__all__ = ["prune_store"]


def prune_store(
    trace: Annotated[Path, typer.Argument(help="Trace or saved replay to make smaller.", metavar="STORE")],
    drop: Annotated[
        list[str], typer.Option("--drop", help="Key, or pattern such as 'hidden/*'. Repeatable.", metavar="KEY")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete optional arrays and streams from every episode, for good; what every step needs stays."""
    from tracekit import store

    pruned = store.prune_store(trace, drop, dry_run=dry_run)
    if as_json:
        print_json({**pruned.to_json(), "dry_run": dry_run})
        return
    screen = console()
    for key in pruned.keys:
        screen.print(key, highlight=False, markup=False)
    if pruned.kept:
        shown = ", ".join(pruned.kept[:3]) + (f" and {len(pruned.kept) - 3} more" if len(pruned.kept) > 3 else "")
        screen.print(f"kept, because every step needs them: {shown}", highlight=False, markup=False, soft_wrap=True)
    verb = "would free" if dry_run else "freed"
    screen.print(f"{verb} {pruned.nbytes / 1e6:.1f} MB in {pruned.episodes} episodes", highlight=False)
