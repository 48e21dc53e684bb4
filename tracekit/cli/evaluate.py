"""`tracekit evaluate`: closed-loop success in the simulator, under configurations and controls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tracekit.cli._console import JsonOption, console, print_json, progress_reporter

__all__ = ["evaluate"]


def evaluate(
    task: Annotated[str, typer.Option(help="Task, or several separated by commas.", metavar="T[,T…]")],
    episodes: Annotated[int, typer.Option(help="Episodes per task and configuration.")] = 25,
    seed: Annotated[int, typer.Option(help="Seed of the first episode of each task.")] = 0,
    config: Annotated[
        list[str] | None,
        typer.Option(
            "--config",
            help="Configuration, repeatable: a TOML file or a preset's name; unpruned where none is given.",
            metavar="FILE|PRESET",
        ),
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(help="Configurations of a sweep's grid: a TOML file or a grid's name.", metavar="FILE|GRID"),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            "--control",
            help="Control, repeatable: blind, no_visual, no_image, no_points, wrong_instruction.",
            metavar="CONTROL",
        ),
    ] = None,
    policy: Annotated[
        str, typer.Option("--policy", metavar="NAME|DIR", help="Policy by name, or a directory that holds one.")
    ] = "reference",
    blind: Annotated[
        Path | None, typer.Option(help="Policy of the blind row, from `tracekit train --blind`.", metavar="DIR")
    ] = None,
    processes: Annotated[int, typer.Option(help="Episodes that run at the same time.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Results per episode; a run that was stopped goes on.", metavar="FILE")
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(help="Record the episodes of one configuration; a stopped one does not go on.", metavar="TRACE"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a policy in closed loop on seeds it was not trained on; all configurations meet the same scenes."""
    from recorders.sim.evaluate import Case, control_case, unpruned
    from recorders.sim.evaluate import evaluate as run_evaluation
    from replay.sweep import load_grid
    from tracekit.cli._names import names
    from tracekit.config import load_config
    from tracekit.errors import ConfigError

    if blind is not None and record is not None:
        raise ConfigError("--blind, --record: one configuration is recorded, without a control; leave out one of both")
    tasks = names(task, "--task")
    no_eyes = _packaged_blind(tasks) if blind is None else str(blind)
    controls = list(control or [])
    if no_eyes is not None and "blind" not in controls and record is None:
        controls.append("blind")
    configurations = [load_config(name) for name in config or []]
    if grid is not None:
        configurations += [one for _, one in load_grid(grid).configurations()]
    configurations = configurations or [unpruned()]
    cases = [Case(configuration.name, configuration, policy) for configuration in configurations]
    cases += [control_case(name, policy, no_eyes, like=configurations[0]) for name in controls]
    with progress_reporter() as report:
        result = run_evaluation(
            cases,
            tasks,
            episodes,
            seed,
            processes=processes,
            out=out,
            record=record,
            progress=report,
        )
    if as_json:
        print_json(result.to_json())
        return
    screen = console()
    screen.print(result.table())
    if len(result.tasks) > 1:
        screen.print(result.task_table())
    if result.no_blind_row is not None:
        screen.print(f"No control: {result.no_blind_row}.")
    if not result.trained:
        screen.print("The policy has random weights: its success says nothing.", style="yellow")


def _packaged_blind(tasks: Sequence[str]) -> str | None:
    """Directory of the packaged blind policy, if there is one that is a control on all of `tasks`."""
    from recorders.sim.evaluate.sightless import no_control_because
    from tracekit.policy import load_policy
    from tracekit.weights import packaged_policy

    directory = packaged_policy("blind")
    if directory is None:
        return None
    reason = no_control_because(directory, load_policy(str(directory)).identity, tasks)
    return str(directory) if reason is None else None
