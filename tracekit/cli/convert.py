"""`tracekit convert`: a run directory of the MLA release -> a policy directory of safetensors, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracekit.cli._console import JsonOption, console, print_json
from tracekit.errors import PolicyError

__all__ = ["convert"]


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="Run directory (config.json, dataset_statistics.json, checkpoints/step-*.pt), or a policy directory.",
            metavar="FROM",
        ),
    ],
    out: Annotated[Path, typer.Argument(help="New directory for what it becomes.", metavar="TO")],
    statistics: Annotated[
        str | None, typer.Option(help="Key in dataset_statistics.json, where it has several.", metavar="KEY")
    ] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads of the backbone.")] = None,
    rms_norm_eps: Annotated[float | None, typer.Option(help="Epsilon of the backbone's norms.")] = None,
    rope_theta: Annotated[float | None, typer.Option(help="Base of the rotary positions.")] = None,
    action_window: Annotated[int | None, typer.Option(help="Actions per chunk.")] = None,
    ddim_steps: Annotated[int | None, typer.Option(help="Denoise passes per action.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Convert a checkpoint of the MLA release into a policy directory of safetensors, or such a directory back.

    The result is loaded once to prove it. What neither the options nor the run's tracekit.json nor the tensors say is
    asked for by name.
    """
    from tracekit.model import ReleaseOptions, load_policy_directory, load_release, save_policy, save_release
    from tracekit.model.checkpoint import is_policy_directory

    if out.exists():
        raise PolicyError(f"{out}: exists already; choose another directory, or remove it")
    options = ReleaseOptions(
        heads=heads,
        rms_norm_eps=rms_norm_eps,
        rope_theta=rope_theta,
        action_window=action_window,
        ddim_steps=ddim_steps,
        statistics=statistics,
    )
    skipped: tuple[str, ...] = ()
    if is_policy_directory(source):
        if options != ReleaseOptions():
            raise PolicyError(f"{source}: a policy directory says everything itself; leave the options out")
        policy = load_policy_directory(source)
        save_release(policy, out)
        identity = policy.identity
    else:
        policy, skipped = load_release(source, options)
        save_policy(policy, out)
        identity = load_policy_directory(out).identity
        if identity != policy.identity:
            raise PolicyError(
                f"{out}: reads back as other weights than {source} holds; check the disk and convert again"
            )
    if as_json:
        print_json({"out": str(out), "policy": identity.to_json(), "skipped": list(skipped)})
        return
    screen = console()
    screen.print(f"{out}: {identity.parameters:,} parameters, weights {identity.weights_digest[:12]}", highlight=False)
    if skipped:
        modules = sorted({".".join(name.split(".")[: 3 if name.startswith("llm_backbone") else 2]) for name in skipped})
        screen.print(f"Left out, they feed no action ({len(skipped)} tensors): {', '.join(modules)}", highlight=False)
