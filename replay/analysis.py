"""What the saliencies and the masks of a recorded trace look like: the paper's Fig. 3 and its claims, as frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import polars as pl

from replay.decisions import replay_decisions
from replay.source import TraceSource
from tracekit.config import Configuration, ObserveConfig, load_config
from tracekit.errors import ConfigError
from tracekit.pruning import Scores
from tracekit.pruning.analysis import conflicts, flicker, saliency

__all__ = ["TraceAnalysis", "analyse"]


@dataclass(frozen=True, slots=True)
class TraceAnalysis:
    """Frames over all analysed episodes, each with the columns `task` and `episode`.

    `saliency`: Eq. 1, 2, 5 and 6 per step and region (`tracekit.pruning.analysis.saliency`; `summary` of the same
    module averages it per task, region, or `phase`, early and late). `conflicts`: active patches, conflicts and their
    rate per pruned step. `flicker`: shares of patches whose mask changed since the step before, with `stage_3` true for
    the configuration as it is and false for the same without smoothing.
    """

    saliency: pl.DataFrame
    conflicts: pl.DataFrame
    flicker: pl.DataFrame


def analyse(
    trace: str | Path, config: str | Path | Configuration = "default", *, episodes: Sequence[str] = ()
) -> TraceAnalysis:
    """Decide every step of `trace` (or of `episodes`, by id) from its scores and say what is found.

    A step is always decided from its own scores, whatever `[observe]` says: the regions are those of the step whose
    saliencies are averaged. Options `average`, `ortho` and `clustering` of the configuration shape the averages.
    Raises ConfigError unless the configuration is one of the tri-stage pruner, and TraceError if the trace lacks
    what its reduction reads.
    """
    resolved = config if isinstance(config, Configuration) else load_config(config)
    if resolved.kind != "tri_stage":
        raise ConfigError(
            f"{resolved.name!r} is a configuration of {resolved.kind!r}; give one of the tri-stage pruner"
        )
    resolved = replace(resolved, observe=ObserveConfig())
    options = resolved.pruner
    decided = replay_decisions(trace, resolved, episodes=episodes)
    unsmoothed = tuple(stage for stage in options.stages if stage != "s3")
    plain = replace(resolved, pruner=replace(options, stages=unsmoothed))
    without = replay_decisions(trace, plain, episodes=episodes)
    found: dict[str, list[pl.DataFrame]] = {"saliency": [], "conflicts": [], "flicker": []}
    for episode in TraceSource(trace).episodes(episodes):
        name, task = episode.info.id, episode.info.task
        scores = Scores.stack([episode.scores(index, options.reduction) for index in range(len(episode))])
        labels = (pl.lit(task).alias("task"), pl.lit(name).alias("episode"))
        found["saliency"].append(
            saliency(
                scores,
                decided[name],
                task=task,
                episode=name,
                average=options.average,
                clamp=options.ortho == "clamp",
                separate=options.clustering == "separate",
            )
        )
        found["conflicts"].append(conflicts(decided[name]).select(*labels, pl.all()))
        sides = [(False, without[name])]
        if unsmoothed != options.stages:
            sides.insert(0, (True, decided[name]))
        found["flicker"] += [
            flicker(decisions).select(*labels, pl.lit(smoothed).alias("stage_3"), pl.all())
            for smoothed, decisions in sides
        ]
    return TraceAnalysis(**{field.name: pl.concat(found[field.name]) for field in fields(TraceAnalysis)})
