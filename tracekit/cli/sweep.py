"""`tracekit sweep`: many configurations over recorded episodes, into one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracekit.cli._console import JsonOption, PolicyOption, console, print_json, progress_reporter

__all__ = ["sweep"]


def sweep(
    trace: Annotated[list[str], typer.Argument(help="Traces to try configurations on.", metavar="TRACE…")],
    grid: Annotated[
        str, typer.Option(help="Which configurations: a TOML file or a grid's name.", metavar="FILE|GRID")
    ] = "fig7",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of results; what is there is not computed again. By default GRID.sweep."),
    ] = None,
    forward: Annotated[
        bool, typer.Option("--forward", help="Run pruned forward passes too, not only decisions from stored scores.")
    ] = False,
    policy: PolicyOption = None,
    episodes: Annotated[str | None, typer.Option(help="Episode ids, separated by commas; all by default.")] = None,
    processes: Annotated[int, typer.Option(help="Processes that compute at the same time.")] = 1,
    no_timing: Annotated[
        bool, typer.Option("--no-timing", help="With --forward: tokens and actions only, no step times.")
    ] = False,
    minimise: Annotated[
        str | None, typer.Option(help="Column of the best configuration, written to best.toml.", metavar="COLUMN")
    ] = None,
    maximise: Annotated[str | None, typer.Option(help="The same, to be large.", metavar="COLUMN")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help="What the best one must meet: 'effective_rate >= 0.5'. Repeatable.", metavar="CONSTRAINT"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Try the configurations of a grid on recorded steps. Stopped or killed, the same command goes on.

    Exit 0 fine, 1 no configuration meets the constraints, 2 unusable input.
    """
    from replay.sweep import load_grid, parse_constraint
    from replay.sweep import sweep as run_sweep
    from reports import sweep_table
    from tracekit.cli._names import names

    constraints = [parse_constraint(text) for text in where or []]
    loaded = load_grid(grid)
    with progress_reporter() as report:
        found = run_sweep(
            trace,
            loaded,
            out or Path(f"{loaded.name}.sweep"),
            level="forward" if forward else "decisions",
            episodes=names(episodes),
            policy=policy,
            processes=processes,
            timing=forward and not no_timing,
            minimise=minimise,
            maximise=maximise,
            where=constraints,
            progress=report,
        )
    if as_json:
        print_json(found.to_json())
    else:
        console().print(sweep_table(found, constrained=bool(constraints)))
    raise typer.Exit(1 if constraints and found.best is None else 0)
