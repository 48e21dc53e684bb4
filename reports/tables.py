"""Results as tables for the terminal. Every table of replays says that it is open-loop."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from replay import ReplayResult

__all__ = ["replay_table"]


def replay_table(result: ReplayResult) -> Table:
    """The comparison of `tracekit replay`, one row per configuration."""
    data = result.to_json()
    table = Table(
        title=f"Replay of {data['steps']} recorded steps (open-loop: actions are compared, not executed)",
        title_justify="left",
        caption=_caption(data),
        caption_justify="left",
    )
    table.add_column("configuration", no_wrap=True)
    for name in (
        "kept\n2D / 3D",
        "pruned %\n2D / 3D",
        "effective\n%",
        "decision\nms",
        "step ms\n(spread)",
        "speedup\n×",
        "= encoders\n× reuse\n× pruning",
        "deviation\nmm / deg / flips",
        "unclipped\nrelative",
        "same reuse\nunpruned",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for row in data["configurations"]:
        table.add_row(*_cells(row))
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    step, factors = row["step_ms"], row["speedup"]
    own, unpruned = row["deviation"], row["deviation_unpruned"]
    known = own["translation_mm"] is not None
    return [
        row["name"],
        f"{row['kept_2d']:.0f} / {row['kept_3d']:.0f}",
        f"{100 * row['rate_2d']:.1f} / {100 * row['rate_3d']:.1f}",
        f"{100 * row['effective_rate']:.1f}",
        "–" if row["decision_ms"] is None else f"{row['decision_ms']:.2f}",
        "–" if step is None else f"{step['median']:.0f} ({step['spread']:.0f})",
        "–" if factors is None else f"{factors['total']:.2f}",
        "–" if factors is None else f"{factors['encoders']:.2f} × {factors['reuse']:.2f} × {factors['pruning']:.2f}",
        f"{own['translation_mm']:.1f} / {own['rotation_deg']:.1f} / {own['gripper_flips']}" if known else "–",
        f"{own['unclipped_relative']:.3f}" if known else "–",
        f"{unpruned['unclipped_relative']:.3f}" if known else "–",
    ]


def _caption(data: dict[str, Any]) -> str:
    lines = [
        "Rates: of the tokens of pruned passes. Effective: of all visual token-passes, unpruned ones included."
    ]
    if any(row["encode_matches"] is False for row in data["configurations"]):
        lines.append(
            "Recomputed encoder outputs differ from the recorded ones: another observation, or another environment."
        )
    exact = [row["name"] for row in data["configurations"] if row["matches_recording"]]
    if exact:
        lines.append(f"Bitwise equal to the recorded actions: {', '.join(exact)}.")
    return "\n".join(lines)
