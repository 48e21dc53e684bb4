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
    tolerant: Annotated[
        bool, typer.Option("--tolerant", help="Accept mask bits that rounding explains, and what follows from them.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare two saved replays, and say why mask bits differ. Exit 0 equal, 1 different, 2 not comparable.

    A bit differs by a tie (the test was within 8 ulp), upstream (inputs differ within tolerance, and the margin is
    smaller than what that can move), logic (equal inputs, another decision) or for real; consequences of an earlier
    one count apart. With --tolerant, exit 1 means that some differ by logic or for real.
    """
    from reports import diff_replays
    from reports.differences import describe, remarks

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
        for detail in found.details:
            for line in describe(detail):
                screen.print(line, highlight=False)
        if found.equal:
            screen.print(f"equal: {', '.join(found.configurations)}", highlight=False)
        for line in remarks(found):
            screen.print(line, highlight=False)
    accepted = found.tolerable if tolerant else found.equal
    raise typer.Exit(0 if accepted else 1)
