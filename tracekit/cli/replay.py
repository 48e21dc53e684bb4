"""`tracekit replay`: a trace under any number of configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracekit.cli._console import JsonOption, PolicyOption, console, print_json, progress_reporter
from tracekit.errors import TraceError

__all__ = ["replay"]


def replay(
    trace: Annotated[Path, typer.Argument(help="Trace to replay.", metavar="TRACE")],
    config: Annotated[
        list[str],
        typer.Option(
            "--config", help="Configuration: a TOML file or a preset's name. Repeatable.", metavar="FILE|PRESET"
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Save the replay here, for diff and reports.", metavar="REPLAY")
    ] = None,
    policy: PolicyOption = None,
    episodes: Annotated[str | None, typer.Option(help="Episode ids, separated by commas; all by default.")] = None,
    no_timing: Annotated[bool, typer.Option("--no-timing", help="Decisions and actions only.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Replay recorded steps under pruning configurations and compare cost and actions with the recording."""
    from replay import Replay, TimingOptions, check_target
    from reports import replay_table

    if out is not None:
        check_target(out)
    wanted = _names(episodes) if episodes is not None else []
    with progress_reporter() as report:
        source = Replay(trace, policy=policy, episodes=wanted, progress=report)
        result = source.run(*config, timing=None if no_timing else TimingOptions())
    if out is not None:
        result.save(out)
    if as_json:
        print_json(result.to_json())
        return
    screen = console()
    screen.print(replay_table(result))
    if out is not None:
        screen.print(f"Saved in {out}.", highlight=False)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise TraceError(f"--episodes {text!r}: give episode ids separated by commas, or leave the option out")
    return names
