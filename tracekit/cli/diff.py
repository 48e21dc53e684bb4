"""`tracekit diff`: are two saved replays the same?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracekit.cli._console import JsonOption, console, print_json

__all__ = ["diff"]


def diff(
    a: Annotated[Path, typer.Argument(help="A saved replay.", metavar="A")],
    b: Annotated[Path, typer.Argument(help="Another one, of the same trace.", metavar="B")],
    as_json: JsonOption = False,
) -> None:
    """Compare two saved replays by digest. Exit 0 equal, 1 different, 2 not comparable."""
    from reports import diff_replays

    found = diff_replays(a, b)
    if as_json:
        print_json(found.to_json())
    else:
        screen = console()
        for first in found.first:
            what = " and ".join(
                name for name, differs in (("decisions", first.decisions), ("actions", first.actions)) if differs
            )
            screen.print(
                f"{first.configuration}: {what} differ first in episode {first.episode}, step {first.step + 1}",
                highlight=False,
            )
        if found.equal:
            screen.print(f"equal: {', '.join(found.configurations)}", highlight=False)
    raise typer.Exit(0 if found.equal else 1)
