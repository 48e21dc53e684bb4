"""What the saliencies and the masks of an episode look like, as polars frames: one row per step and region."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from tracekit.errors import ConfigError
from tracekit.pruning.base import Decision
from tracekit.pruning.kmeans import kmeans_1d
from tracekit.pruning.saliency import ratio
from tracekit.pruning.scores import Scores

__all__ = ["REGIONS", "conflicts", "flicker", "saliency", "summary"]

REGIONS = ("background", "robot", "object")
"""Names of the semantic sets, in the order of the cluster numbers."""

Mask = npt.NDArray[np.bool_]


def saliency(
    scores: Scores,
    decisions: Sequence[Decision],
    *,
    task: str = "",
    episode: str = "",
    average: Literal["mean_of_ratios", "ratio_of_sums"] = "mean_of_ratios",
    clamp: bool = False,
    separate: bool = False,
) -> pl.DataFrame:
    """Eq. 1, 2, 5 and 6 per step and region of one episode.

    `scores`: (steps, N_2D) with one decision per step; step 1 is the first. Columns: `task`, `episode`, `step`, `phase`
    (`early`, the first half of the steps, or `late`), `region` (`all` or one of `REGIONS`), `patches`,
    `patches_with_points`; the means of M_2D and M_3D of both stages over the patches that have points (`m_2d_s1`,
    `m_3d_s1`: Eq. 1; `m_2d_s2`, `m_3d_s2`: Eq. 5, 6), null where there are none; `s_2d`, `s_3d`, `s_total`: Eq. 2,
    summed over all patches of the region. Eq. 3 is the mean of `s_total` over steps (see `summary`).

    `average`: mean of the patches' ratios, or ratio of the sums over them. `clamp`: ‖ortho‖₁ at most ‖α_3D‖₁.
    `separate`: S_3D by a clustering of its own (K = 2: robot and object). Raises ConfigError where lengths differ.
    """
    if len(scores) != len(decisions):
        raise ConfigError(f"{len(scores)} steps of scores and {len(decisions)} decisions; give one decision per step")
    rows: list[dict[str, object]] = []
    for index, decision in enumerate(decisions):
        step = scores.step(index)
        regions = {"all": np.ones(step.points.size, np.bool_)}
        if decision.cluster is not None:
            regions |= {name: decision.cluster == number for number, name in enumerate(REGIONS)}
        for region, members in regions.items():
            row: dict[str, object] = {
                "task": task,
                "episode": episode,
                "step": index + 1,
                "phase": "early" if 2 * index < len(scores) else "late",
                "region": region,
                "patches": int(members.sum()),
                "patches_with_points": int((members & (step.points > 0)).sum()),
            }
            row |= _means(step, members & (step.points > 0), average, clamp=clamp)
            members_3d = _own_3d_set(step, region) if separate else members
            s_2d, s_3d = _total(step.attention_2d, members), _total(step.attention_3d, members_3d)
            rows.append(row | {"s_2d": s_2d, "s_3d": s_3d, "s_total": s_2d + s_3d})
    return pl.DataFrame(rows, schema=_SCHEMA)


def summary(frame: pl.DataFrame, by: Sequence[str] = ("task", "region")) -> pl.DataFrame:
    """Means over the steps of `saliency` frames, per group of `by` (`phase`, `step` and `episode` are possible too).

    `alpha_sem` is Eq. 3: the mean over steps of S_total. `steps`: how many rows went into a group.
    """
    means = ("m_2d_s1", "m_3d_s1", "m_2d_s2", "m_3d_s2", "s_2d", "s_3d")
    return (
        frame.group_by(list(by), maintain_order=True)
        .agg(
            pl.len().alias("steps"),
            pl.col("patches").mean(),
            *(pl.col(name).mean() for name in means),
            pl.col("s_total").mean().alias("alpha_sem"),
        )
        .sort(list(by), maintain_order=True)
    )


def conflicts(decisions: Sequence[Decision]) -> pl.DataFrame:
    """Per pruned step: `active` patches (S2 ≠ ∅), `conflicts` among them (S1 ∩ S2 = ∅), and their `rate`."""
    rows = []
    for index, decision in enumerate(decisions):
        if decision.pruned and decision.s2 is not None and decision.conflict is not None:
            active, count = int((decision.s2 > 0).sum()), int(decision.conflict.sum())
            rows.append(
                {"step": index + 1, "active": active, "conflicts": count, "rate": count / active if active else 0.0}
            )
    schema = {"step": pl.Int64, "active": pl.Int64, "conflicts": pl.Int64, "rate": pl.Float64}
    return pl.DataFrame(rows, schema=schema)


def flicker(decisions: Sequence[Decision]) -> pl.DataFrame:
    """Per pair of successive pruned steps: the share of patches whose mask changed, `flicker_2d` and `flicker_3d`.

    A decision over point tokens has no 3D mask over patches; its `flicker_3d` is null.
    """
    rows = []
    for index in range(1, len(decisions)):
        before, after = decisions[index - 1], decisions[index]
        if before.pruned and after.pruned:
            rows.append(
                {
                    "step": index + 1,
                    "flicker_2d": float((before.keep_2d != after.keep_2d).mean()),
                    "flicker_3d": _changed(before.keep_3d_patches, after.keep_3d_patches),
                }
            )
    return pl.DataFrame(rows, schema={"step": pl.Int64, "flicker_2d": pl.Float64, "flicker_3d": pl.Float64})


_SCHEMA = {
    "task": pl.String,
    "episode": pl.String,
    "step": pl.Int64,
    "phase": pl.String,
    "region": pl.String,
    "patches": pl.Int64,
    "patches_with_points": pl.Int64,
    **dict.fromkeys(("m_2d_s1", "m_3d_s1", "m_2d_s2", "m_3d_s2", "s_2d", "s_3d", "s_total"), pl.Float64),
}


def _means(step: Scores, members: Mask, average: str, *, clamp: bool) -> dict[str, float | None]:
    """M_2D and M_3D of both stages over `members`, None if there are none."""
    f_2d, f_3d, a_2d, a_3d, ortho = (
        getattr(step, name)[members].astype(np.float64)
        for name in ("norm_2d", "norm_3d", "attention_2d", "attention_3d", "ortho_3d")
    )
    if clamp:
        ortho = np.minimum(ortho, a_3d)
    parts = {
        "m_2d_s1": (f_2d, f_2d + f_3d),
        "m_3d_s1": (f_3d, f_2d + f_3d),
        "m_2d_s2": (a_2d, a_2d + a_3d),
        "m_3d_s2": (ortho, a_2d + a_3d),
    }
    if not members.any():
        return dict.fromkeys(parts)
    if average == "ratio_of_sums":
        return {name: float(ratio(part.sum(), whole.sum())) for name, (part, whole) in parts.items()}
    return {name: float(ratio(part, whole).mean()) for name, (part, whole) in parts.items()}


def _own_3d_set(step: Scores, region: str) -> Mask:
    """(N_2D,) patches whose 3D attention puts them into `region`, by a clustering with K = 2."""
    if region == "all":
        return np.ones(step.points.size, np.bool_)
    found = kmeans_1d(step.attention_3d, 2)
    name = {len(found.centroids) - 1: "object"}
    return np.array([name.get(label, "robot") == region for label in found.labels.tolist()], np.bool_)


def _total(values: npt.NDArray[np.float32], members: Mask) -> float:
    return float(values[members].sum(dtype=np.float64))


def _changed(before: Mask | None, after: Mask | None) -> float | None:
    return None if before is None or after is None else float((before != after).mean())
