"""Results as tables for the terminal. Every table of replays says that it is open-loop."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from replay import ReplayResult

__all__ = ["comparison_table", "replay_table"]

UNKNOWN = "–"
COST_COLUMNS = ("kept 2D/3D", "pruned %", "eff. %", "decide ms", "step ms", "speedup", "")
ACTION_COLUMNS = ("mm", "degrees", "flips", "unclipped", "unpruned", "clipped %")


def replay_table(result: ReplayResult) -> Group:
    """The comparison of `tracekit replay`: what a configuration keeps and costs, and what it does to the actions."""
    data = result.to_json()
    rows = data["configurations"]
    steps = f"{data['steps']} recorded steps"
    cost = _table(f"Open-loop, {steps}: tokens and time", *COST_COLUMNS)
    actions = _table(f"Open-loop, {steps}: actions against the recording", *ACTION_COLUMNS)
    for row in rows:
        cost.add_row(_label(row), *_cost_cells(row))
        actions.add_row(_label(row), *_action_cells(row))
    return Group(cost, actions, Text("\n".join([_notes(rows), *_trust(data)]), style="dim"))


def comparison_table(title: str) -> Table:
    """A table with a row per configuration, so far with their names alone."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("configuration", no_wrap=True)
    return table


def _table(title: str, *columns: str) -> Table:
    table = comparison_table(title)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _cost_cells(row: dict[str, Any]) -> list[str]:
    step, factors = row["step_ms"], row["speedup"]
    return [
        f"{row['kept_2d']:.0f} / {row['kept_3d']:.0f}",
        f"{100 * row['rate_2d']:.1f} / {100 * row['rate_3d']:.1f}",
        f"{100 * row['effective_rate']:.1f}",
        UNKNOWN if row["decision_ms"] is None else f"{row['decision_ms']:.2f}",
        UNKNOWN if step is None else f"{step['median']:.0f} ± {step['spread'] / 2:.0f}",
        UNKNOWN if factors is None else f"{factors['total']:.2f} ×",
        "" if factors is None else _product(factors),
    ]


def _label(row: dict[str, Any]) -> str:
    """The configuration's name, and how it was computed where that changes what the numbers mean."""
    return f"{row['name']} ({', '.join(row['labels'])})" if row["labels"] else str(row["name"])


def _product(factors: dict[str, float]) -> str:
    return "= " + " × ".join(f"{factor:.2f}" for name, factor in factors.items() if name != "total")


def _action_cells(row: dict[str, Any]) -> list[str]:
    own, unpruned = row["deviation"], row["deviation_unpruned"]
    if own["translation_mm"] is None:
        return [UNKNOWN] * 6
    return [
        f"{own['translation_mm']:.1f}",
        f"{own['rotation_deg']:.1f}",
        f"{own['gripper_flips']}",
        f"{own['unclipped_relative']:.4f}",
        f"{unpruned['unclipped_relative']:.4f}",
        f"{100 * own['clipped_share']:.0f}",
    ]


def _notes(rows: list[dict[str, Any]]) -> str:
    lines = [
        "Open-loop: replayed actions are compared with recorded ones, not executed; success is another question.",
        "kept, pruned: tokens of pruned passes; eff.: of all visual token-passes, unpruned ones included.",
        "step: median over interleaved rounds ± half their range; speedup = encoder caching × prefix reuse × pruning.",
        "unclipped: ‖a − b‖ / ‖b‖ of the sampler's outputs; unpruned: the same reuse without pruning.",
    ]
    if any(row["encode_matches"] is False for row in rows):
        lines.append("Recomputed encoder outputs differ from the recorded ones: another observation or environment.")
    if any("mask-only" in row["labels"] for row in rows):
        lines.append("mask-only: dropped tokens were computed and hidden from the others; nothing is saved.")
    exact = [row["name"] for row in rows if row["matches_recording"] is True]
    if exact:
        lines.append(f"Bitwise equal to the recorded actions: {', '.join(exact)}.")
    for row in rows:
        if isinstance(row["matches_recording"], dict):
            bits, actions = row["matches_recording"]["mask_bits"], row["matches_recording"]["actions_bitwise"]
            said = "bitwise equal" if actions else "not bitwise equal"
            lines.append(f"{row['name']} pruned the recorded run: {bits:.2%} of its mask bits equal, actions {said}.")
    return "\n".join(lines)


def _trust(data: dict[str, Any]) -> list[str]:
    """What bitwise claims of this replay rest on: the environment, and a second run if there was one."""
    about = data["fingerprint"]
    threads = sorted({row["threads"] for row in data["configurations"]})
    machine = f"{about['cpu']} ({about['cpu_capability']}), torch {about['torch']}, BLAS {about['blas']}"
    lines = [] if data["policy_trained"] else ["The recorded policy has random weights: masks show the mechanism only."]
    lines += [f"Environment: {machine}, threads {', '.join(map(str, threads))}."]
    if data["environment_differs"]:
        lines.append(
            f"Recorded in another environment ({', '.join(data['environment_differs'])}): decisions from stored scores "
            "are the same bits here, forward passes are equal to rounding."
        )
    check = data["check"]
    if check is not None and check["passed"]:
        lines.append(
            f"Checked: a second run in reverse order gave the same bits ({', '.join(check['repeated']) or 'nothing'}); "
            f"decided alone and in shuffled batches of 1000, the same ({', '.join(check['batched']) or 'nothing'})."
        )
        if check["unclaimed"]:
            lines.append(f"Equal to rounding only, in throughput mode: {', '.join(check['unclaimed'])}.")
    elif check is not None:
        lines += ["The check failed:", *(f"  {problem}" for problem in check["problems"])]
    return lines
