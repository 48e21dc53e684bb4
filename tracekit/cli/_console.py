"""What the verbs share: results to standard output (a table, or one JSON object), progress to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["JsonOption", "PolicyOption", "console", "print_json", "progress_reporter"]

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
PolicyOption = Annotated[
    str | None, typer.Option("--policy", metavar="NAME|DIR", help="Policy by name, or a directory that holds one.")
]

NARROWEST = 150
"""Columns of output that is no terminal: wide enough for every table."""


def console() -> Console:
    """Standard output; as wide as its tables need where it is not a terminal. Names are text there, never markup."""
    return Console(markup=False, width=None if sys.stdout.isatty() else NARROWEST)


def print_json(data: Any) -> None:
    """One JSON object on standard output. Not-a-number is refused: a figure that is not known is null."""
    sys.stdout.write(json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


@contextmanager
def progress_reporter() -> Iterator[Any]:
    """A callable (what, done, total) that draws progress on standard error, silent where that is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield report
