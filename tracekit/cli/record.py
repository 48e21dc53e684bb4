"""`tracekit record sim`: live simulator runs into a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracekit.cli._console import JsonOption, console, print_json, progress_reporter

__all__ = ["app"]

app = typer.Typer(help="Record live runs into a trace.", no_args_is_help=True)


@app.callback()
def _record() -> None:
    """Record live runs into a trace."""


@app.command("sim")
def record_sim(
    task: Annotated[str, typer.Option(help="Task, or several separated by commas.", metavar="T[,T…]")],
    out: Annotated[Path, typer.Option(help="Trace to write; an existing one is appended to.", metavar="TRACE")],
    episodes: Annotated[int, typer.Option(help="Episodes per task.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the first episode of each task; episode i uses seed + i.")] = 0,
    policy: Annotated[
        str, typer.Option("--policy", metavar="NAME|DIR", help="Policy whose forward pass is recorded.")
    ] = "reference",
    drive: Annotated[
        str, typer.Option(help="Who moves the arm: policy, or expert with the policy recorded beside it.")
    ] = "expert",
    capture: Annotated[
        str, typer.Option(help="Observables to keep: minimal, default, baselines or full.", metavar="PRESET")
    ] = "default",
    as_json: JsonOption = False,
) -> None:
    """Record the simulator; where the expert drives, the policy's forward pass is recorded beside it (a shadow run)."""
    from recorders.sim.record import as_driver, record_simulator
    from tracekit.capture import CaptureSpec
    from tracekit.cli._names import names

    screen = console()

    def announce(sizes: dict[str, int]) -> None:
        largest = ", ".join(f"{key} {size / 1e3:,.0f}" for key, size in list(sizes.items())[:3])
        total = f"{sum(sizes.values()) / 1e3:,.0f} kB per step before compression"
        screen.print(f"capture {capture}: {total} (largest: {largest})", highlight=False)

    with progress_reporter() as report:
        summary = record_simulator(
            names(task, "--task"),
            episodes,
            seed,
            out,
            policy=policy,
            drive=as_driver(drive),
            capture=CaptureSpec.preset(capture),
            progress=report,
            announce=None if as_json else announce,
        )
    if as_json:
        print_json(summary.to_json())
        return
    for episode in summary.episodes:
        outcome = "success" if episode.success else "no success"
        screen.print(
            f"{episode.id}: “{episode.instruction}”, {episode.steps} key poses, the {summary.driver}'s {outcome}",
            highlight=False,
        )
    shadow = " (shadow run: the expert drove, the policy was recorded beside it)" if summary.driver == "expert" else ""
    screen.print(
        f"{len(summary.episodes)} episodes in {summary.seconds:.1f} s, {summary.nbytes / 1e6:.1f} MB in {out}{shadow}",
        highlight=False,
    )
    if not summary.trained:
        screen.print(
            "The policy has random weights: masks and deviations show the mechanism, not a skill.", style="yellow"
        )
