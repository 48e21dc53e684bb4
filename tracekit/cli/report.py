"""`tracekit report …`: figures and tables from saved results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracekit.cli._console import JsonOption, console, print_json

__all__ = ["app"]

app = typer.Typer(help="Figures and tables from saved results.", no_args_is_help=True)


@app.callback()
def _report() -> None:
    """Figures and tables from saved results."""


@app.command("masks")
def masks(
    replay: Annotated[Path, typer.Argument(help="A saved replay.", metavar="REPLAY")],
    out: Annotated[Path, typer.Option(help="Picture to write (.png, .svg or .pdf).", metavar="FILE")],
    config: Annotated[
        list[str] | None, typer.Option("--config", help="Name of a replayed configuration; all by default. Repeatable.")
    ] = None,
    episode: Annotated[str | None, typer.Option(help="Episode id; the first by default.")] = None,
    trace: Annotated[Path | None, typer.Option(help="The replayed trace, if it was moved.")] = None,
    stages: Annotated[
        bool | None,
        typer.Option(
            "--stages/--no-stages",
            help="Rows for S1, S1 + S2 and all of a tri-stage configuration; by default if it is drawn alone.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw the masks of one episode over its camera images."""
    from reports import draw_masks

    written = draw_masks(replay, out, configurations=config or (), episode=episode, trace=trace, stages=stages)
    if as_json:
        print_json({"written": str(written)})
    else:
        console().print(f"Wrote {written}.", highlight=False)


@app.command("rank")
def rank(
    sweep: Annotated[Path, typer.Argument(help="Table of a forward sweep.", metavar="SWEEP.parquet")],
    evaluation: Annotated[Path, typer.Argument(help="What `evaluate --json` printed.", metavar="EVALUATION.json")],
    by: Annotated[str, typer.Option(help="Column that ranks offline; small is good.", metavar="COLUMN")] = (
        "unclipped_relative"
    ),
    resamples: Annotated[int, typer.Option(help="Resamples of the seeds for the interval.", min=1)] = 2000,
    as_json: JsonOption = False,
) -> None:
    """Compare the ranks of configurations in the open loop and in the closed one (Kendall's τ-b)."""
    from reports import rank as compare
    from reports import rank_table

    found = compare(sweep, evaluation, column=by, resamples=resamples)
    if as_json:
        print_json(found.to_json())
    else:
        console().print(rank_table(found))
