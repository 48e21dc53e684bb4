"""`tracekit replay`: a trace under any number of configurations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from tracekit.cli._console import JsonOption, PolicyOption, console, print_json, progress_reporter

__all__ = ["replay"]


def replay(
    trace: Annotated[Path, typer.Argument(help="Trace to replay.", metavar="TRACE")],
    config: Annotated[
        list[str] | None,
        typer.Option(
            "--config",
            help="Configuration: a TOML file or a preset's name. Repeatable. A trace that was pruned while it was "
            "recorded is by default replayed under its own.",
            metavar="FILE|PRESET",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Save the replay here, for diff and reports.", metavar="REPLAY")
    ] = None,
    policy: PolicyOption = None,
    episodes: Annotated[str | None, typer.Option(help="Episode ids, separated by commas; all by default.")] = None,
    no_timing: Annotated[bool, typer.Option("--no-timing", help="Decisions and actions only.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Run everything a second time, in another order and in other batches.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Replay recorded steps under pruning configurations and compare cost and actions with the recording.

    Exit 0 fine, 1 the second run of --check came out otherwise, 2 unusable input.
    """
    from replay import Replay, TimingOptions, check_replay, check_target
    from reports import replay_table
    from tracekit.cli._names import names

    if out is not None:
        check_target(out)
    with progress_reporter() as report:
        source = Replay(trace, policy=policy, episodes=names(episodes), progress=report)
        result = source.run(*(config or ()), timing=None if no_timing else TimingOptions())
        passed = True
        if check:
            found = check_replay(result, policy=policy, progress=report)
            passed, result = found.passed, replace(result, check=found.to_json())
    if out is not None:
        result.save(out)
    if as_json:
        print_json(result.to_json())
    else:
        screen = console()
        screen.print(replay_table(result))
        if out is not None:
            screen.print(f"Saved in {out}.", highlight=False)
    raise typer.Exit(0 if passed else 1)
