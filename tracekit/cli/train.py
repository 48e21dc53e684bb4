"""`tracekit train`: the reference policy from demonstrations in the simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracekit.cli._console import JsonOption, console, print_json, progress_reporter

__all__ = ["train"]


def train(
    out: Annotated[Path, typer.Option(help="Folder of the run; an unfinished one is taken up.", metavar="DIR")],
    data: Annotated[Path, typer.Option(help="Folder of demonstrations; missing ones are recorded.", metavar="DIR")],
    steps: Annotated[int | None, typer.Option(help="Training steps; 12000, or 2000 for a blind policy.")] = None,
    hours: Annotated[
        float | None, typer.Option(help="Stop after so long, recording not counted; the same command goes on.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and noise.")] = 0,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks, separated by commas; all by default.", metavar="T[,T…]")
    ] = None,
    episodes: Annotated[int, typer.Option(help="Demonstrations per task.")] = 600,
    resume: Annotated[
        Path | None, typer.Option(help="Policy to start from, with a fresh optimiser.", metavar="DIR")
    ] = None,
    threads: Annotated[
        int, typer.Option(help="Processes for demonstrations, threads for training, which keeps two busy.")
    ] = 2,
    no_auxiliary: Annotated[bool, typer.Option("--no-auxiliary", help="The action loss alone.")] = False,
    thinned: Annotated[
        float, typer.Option(help="Share of the steps that see 96 of 256 tokens per modality, 0 to 0.5; cheaper.")
    ] = 0.5,
    blind: Annotated[bool, typer.Option("--blind", help="A policy without eyes: the control of every table.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a policy by diffusion behaviour cloning; the run's folder holds policy, learning curve and model card."""
    from recorders.sim import TASKS
    from recorders.sim.train import TrainingPlan
    from recorders.sim.train import train as run_training
    from tracekit.cli._names import names

    plan = TrainingPlan(
        tasks=tuple(names(tasks, "--tasks")) if tasks is not None else TASKS,
        episodes=episodes,
        steps=steps if steps is not None else 2000 if blind else 12_000,
        seed=seed,
        batch=128 if blind else 16,
        thinned=thinned,
        blind=blind,
        auxiliary=not no_auxiliary,
    )
    with progress_reporter() as report:
        summary = run_training(out, data, plan, resume=resume, hours=hours, threads=threads, progress=report)
    if as_json:
        print_json(summary.to_json())
        return
    screen = console()
    held_out = ", ".join(f"{name} {value:.4f}" for name, value in summary.held_out.items()) or "not measured yet"
    screen.print(
        f"Step {summary.step} of {plan.steps}, {summary.seconds / 3600:.2f} h, {summary.frames} frames of "
        f"{len(plan.demonstrations) - summary.failed_episodes} episodes; held-out losses: {held_out}",
        highlight=False,
    )
    screen.print(f"Policy in {out / 'policy'}: tracekit evaluate --policy {out / 'policy'} …", highlight=False)
    if summary.step < plan.steps:
        screen.print("Not finished: the same command goes on from here.", highlight=False)
