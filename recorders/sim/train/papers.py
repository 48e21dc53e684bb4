"""The papers of a policy: what its training wrote down, in the policy's directory or in the run's around it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recorders.sim.train.plan import TrainingPlan
from tracekit.errors import ConfigError, PolicyError

__all__ = ["SUMMARY", "papers_of", "plan_of", "read_papers"]

SUMMARY = "training.json"
"""File of `TrainingSummary.to_json`: beside the policy in the folder of a run, inside it once it is published."""

_COUNTS = ("step", "frames", "failed_episodes", "threads", "parameters")


def papers_of(policy: Path, weights_digest: str) -> dict[str, Any] | None:
    """What is written of the weights `weights_digest` that lie in the directory `policy`; None without papers of these.

    Raises PolicyError for a file that cannot be read, and for damaged papers of these weights.
    """
    policy = policy.resolve()  # of `.` and of a link, the folder around it is another
    for path in (policy / SUMMARY, policy.parent / SUMMARY):
        if path.is_file():
            found = _read(path)
            if isinstance(found, dict) and found.get("weights_digest") == weights_digest:
                return _sound(path, found)
    return None


def read_papers(run: Path) -> dict[str, Any]:
    """The papers in the folder `run`; raises PolicyError where there are none or they are damaged."""
    return _sound(run / SUMMARY, _read(run / SUMMARY))


def plan_of(papers: Mapping[str, Any]) -> TrainingPlan:
    """The plan that sound papers tell of."""
    plan = papers["plan"]
    return TrainingPlan(**plan | {"tasks": tuple(plan["tasks"])})


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PolicyError(f"{path}: cannot be read ({error}); give the folder of a training run") from error


def _sound(path: Path, found: Any) -> dict[str, Any]:
    """`found` with everything in it that somebody reads later: an error in the card's last line comes too late."""
    try:
        papers = dict(found)
        sound = all(_is_sound(run) for run in (papers, *papers.get("before", [])))
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, ConfigError) as error:
        raise PolicyError(f"{path}: not of a training run ({error!r}); restore the file, or train again") from error
    if not sound:
        raise PolicyError(f"{path}: holds values that no training run writes; restore the file, or train again")
    return papers


def _is_sound(run: Mapping[str, Any]) -> bool:
    plan = plan_of(run)
    counts = (plan.steps, plan.episodes, plan.batch, plan.draws, plan.seed, run.get("scene_version", 0))
    return (
        isinstance(run["plan"]["tasks"], list)
        and all(isinstance(run[name], str) for name in ("weights_digest", "demonstrations_digest"))
        and all(type(count) is int and count >= 0 for count in (*counts, *(run[name] for name in _COUNTS)))
        and all(type(answer) is bool for answer in (plan.blind, plan.auxiliary))
        and all(math.isfinite(value) for value in (*run["held_out"].values(), plan.learning_rate, run["seconds"]))
    )
