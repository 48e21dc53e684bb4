"""The model card: what a user has to know of trained weights before they believe a number made with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recorders.sim.blind import BLIND
from recorders.sim.train.losses import WEIGHTS
from recorders.sim.train.plan import KEPT_TOKENS, thinned_steps
from recorders.sim.train.seeds import TRAINING_SEEDS, VALIDATION_SEEDS

__all__ = ["model_card"]


def model_card(training: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> str:
    """Markdown from `TrainingSummary.to_json()` and, where there is one, `Evaluation.to_json()`."""
    plan = training["plan"]
    what = (
        "State and text only: the control without eyes."
        if plan["blind"]
        else "Front picture, point cloud, state, text."
    )
    per_task = plan["episodes"]
    episodes = per_task * len(plan["tasks"]) - training["failed_episodes"]
    before = training.get("before", [])
    lines = [
        f"# Model card: the {'blind control of the ' if plan['blind'] else ''}reference policy",
        "",
        f"A small MLA policy for the tasks of the embedded simulator, {training['parameters']:,} parameters. {what}",
        "It exists so that pruning methods are measured on a policy that looks; it is for nothing else. Licence: MIT.",
        "",
        "| | |",
        "|---|---|",
        f"| tasks | {', '.join(plan['tasks'])} |",
        f"| scenes | version {_scenes(training)}; losses of other versions are not comparable |",
        f"| demonstrations | {episodes} successful episodes of the expert, {training['frames']} labelled frames |",
        f"| failed episodes, left out | {training['failed_episodes']} |",
        "| noise in demonstrations | added to what is executed now and then, never to labels |",
        f"| training seeds | {TRAINING_SEEDS} … {TRAINING_SEEDS + per_task - 1} |",
        f"| seeds of the held-out loss | from {VALIDATION_SEEDS} |",
        f"| demonstrations' digest | `{training['demonstrations_digest']}` |",
        f"| steps | {training['step']} of {plan['steps']}, {plan['batch']} frames × {plan['draws']} noise draws each |",
        f"| wall time | {_hours([training])}, {training['threads']} threads, on a shared CPU{_with_before(before)} |",
        f"| objective | noise prediction, AdamW {plan['learning_rate']:g}, cosine; weights are a running average |",
        f"| auxiliary losses | {_auxiliary(plan)} |",
        f"| token dropout | {_dropout(training)}{'; of earlier runs see below' if before else ''} |",
        f"| started from | {_start(plan)} |",
        f"| weights' digest | `{training['weights_digest']}` |",
        "",
        *_history(before),
        "## Held-out losses",
        "",
        *([f"- {name}: {value:.4f}" for name, value in training["held_out"].items()] or ["Not measured yet."]),
        "",
        "## Closed-loop success",
        "",
        *_success(training, evaluation),
    ]
    return "\n".join(lines) + "\n"


def _auxiliary(plan: Mapping[str, Any]) -> str:
    if not plan["auxiliary"]:
        return "none"
    names = ("landmarks", "clean_action") if plan["blind"] else tuple(WEIGHTS)
    return ", ".join(f"{name} × {WEIGHTS[name]:g}" for name in names)


def _dropout(training: Mapping[str, Any]) -> str:
    plan = training["plan"]
    if plan["blind"]:
        return "every visual token, always"
    last = thinned_steps(plan["steps"], plan["thinned"])
    if last == 0:
        return "none in this run: every step saw all tokens"
    seen = "" if training["step"] > last else "; **those have not begun: these weights know thinned tokens only**"
    return f"{KEPT_TOKENS} of 256 tokens of each modality in steps 1 … {last}, all of them afterwards{seen}"


def _start(plan: Mapping[str, Any]) -> str:
    if plan["resumed_from"] is None:
        return f"random weights of seed {plan['seed']}"
    return f"weights `{plan['resumed_from']}`, with a fresh optimiser; the steps above are those since"


def _scenes(run: Mapping[str, Any]) -> str:
    return str(run.get("scene_version", "not noted"))


def _hours(runs: Sequence[Mapping[str, Any]]) -> str:
    return f"{sum(run['seconds'] for run in runs) / 3600:.2f} h"


def _with_before(before: Sequence[Mapping[str, Any]]) -> str:
    return f"; {_hours(before)} in the runs before" if before else ""


def _history(before: Sequence[Mapping[str, Any]]) -> list[str]:
    if not before:
        return []
    heading = [
        "## Where the weights come from",
        "",
        "Runs before this one, each from the weights of the one above it with a fresh optimiser.",
        "",
        "| weights | scenes | steps | episodes per task | token dropout | wall time |",
        "|---|---|---|---|---|---|",
    ]
    rows = [
        f"| `{run['weights_digest'][:12]}` | {_scenes(run)} | {run['step']} of {run['plan']['steps']} | "
        f"{run['plan']['episodes']} | {_dropout(run)} | {_hours([run])}, {run['threads']} threads |"
        for run in before
    ]
    return [*heading, *rows, ""]


def _success(training: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> list[str]:
    """The rows of these weights, and the one of a blind policy beside them."""
    if evaluation is None:
        return ["Not evaluated yet."]
    tasks = evaluation["tasks"]
    first, last = evaluation["seeds"]
    rows = [
        f"Seeds {first} … {last} of every task, 95 % Wilson intervals.",
        "",
        f"| configuration | all | {' | '.join(tasks)} |",
        f"|---|---|{'---|' * len(tasks)}",
    ]
    for entry in evaluation["configurations"]:
        if entry["name"] != BLIND and entry["policy"]["weights_digest"] != training["weights_digest"]:
            continue
        cells = [entry, *(entry["by_task"][task] for task in tasks)]
        rows.append(f"| {entry['name']} | {' | '.join(map(_rate, cells))} |")
    return rows


def _rate(cell: Mapping[str, Any]) -> str:
    low, high = cell["interval"]
    return f"{100 * cell['success_rate']:.0f} % ({100 * low:.0f} … {100 * high:.0f})"
