"""Success rates with what they cost, as one object and as one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from recorders.sim.blind import is_blind
from recorders.sim.environment import Environment
from recorders.sim.evaluate.controls import Case
from recorders.sim.evaluate.episode import EpisodeOutcome
from recorders.sim.evaluate.statistics import PairedDifference, paired_difference, wilson_interval
from tracekit.policy import PolicyIdentity

__all__ = ["CaseResult", "Evaluation"]


@dataclass(frozen=True, slots=True)
class CaseResult:
    """One case over all tasks and seeds. `paired`: against the first case, None for that one itself.

    `by_task`: successes and episodes of every task; `by_seed`: task -> seed -> success; `paired_by_task`: as `paired`,
    task by task, empty for the first case. Times and shares of tokens are those of `EpisodeOutcome`.
    """

    case: Case
    identity: PolicyIdentity
    by_task: Mapping[str, tuple[int, int]]
    by_seed: Mapping[str, Mapping[int, bool]]
    outcomes: tuple[EpisodeOutcome, ...]
    paired: PairedDifference | None
    paired_by_task: Mapping[str, PairedDifference]

    @property
    def successes(self) -> int:
        """Episodes that succeeded."""
        return sum(outcome.success for outcome in self.outcomes)

    @property
    def success_rate(self) -> float:
        """Over all tasks and seeds."""
        return self.successes / len(self.outcomes)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, 95 %."""
        return wilson_interval(self.successes, len(self.outcomes))

    def step_ms(self, percentile: float) -> float:
        """Percentile of the control step's wall time, milliseconds, over all steps of all episodes."""
        return float(np.percentile(np.concatenate([outcome.step_ms for outcome in self.outcomes]), percentile))

    def pruned(self, modality: str) -> float:
        """Mean share of `image` or `point` tokens that were dropped."""
        return float(np.mean([getattr(outcome, f"pruned_{modality}") for outcome in self.outcomes]))

    def to_json(self) -> dict[str, Any]:
        """One entry of `configurations`."""
        return {
            "name": self.case.name,
            "success_rate": self.success_rate,
            "interval": list(self.interval),
            "successes": self.successes,
            "episodes": len(self.outcomes),
            "by_task": {
                task: {
                    "success_rate": won / count,
                    "interval": list(wilson_interval(won, count)),
                    "successes": won,
                    "episodes": count,
                    "paired": _paired_json(self.paired_by_task.get(task)),
                }
                for task, (won, count) in self.by_task.items()
            },
            "by_seed": {
                task: {str(seed): won for seed, won in sorted(seeds.items())} for task, seeds in self.by_seed.items()
            },
            "steps": float(np.mean([outcome.steps for outcome in self.outcomes])),
            "step_ms": {"p50": self.step_ms(50), "p95": self.step_ms(95)},
            "pruned": {"image": self.pruned("image"), "point": self.pruned("point")},
            "paired": _paired_json(self.paired),
            "labels": list(self.case.configuration.labels),
            "policy": self.identity.to_json(),
            "configuration": self.case.configuration.to_json(),
            "wrong_instruction": self.case.wrong_instruction,
        }


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All cases on the same tasks and seeds, in the order they were asked for."""

    cases: tuple[CaseResult, ...]
    tasks: tuple[str, ...]
    seeds: tuple[int, int]

    @classmethod
    def of(
        cls,
        episodes: Sequence[tuple[Case, str, int, EpisodeOutcome]],
        identities: Mapping[str, PolicyIdentity],
    ) -> Evaluation:
        """Collect (case, task, seed, outcome) of all episodes; every case has the same tasks and seeds."""
        cases = list(dict.fromkeys(case.name for case, *_ in episodes))
        results: list[CaseResult] = []
        for name in cases:
            own = [episode for episode in episodes if episode[0].name == name]
            outcomes = tuple(outcome for *_, outcome in own)
            by_task: dict[str, tuple[int, int]] = {}
            by_seed: dict[str, dict[int, bool]] = {}
            for _, task, seed, outcome in own:
                won, count = by_task.get(task, (0, 0))
                by_task[task] = (won + outcome.success, count + 1)
                by_seed.setdefault(task, {})[seed] = bool(outcome.success)
            here = [outcome.success for outcome in outcomes]
            there = [outcome.success for outcome in results[0].outcomes] if results else None
            paired = None if there is None else paired_difference(here, there)
            task_by_task = (
                {task: _paired_seeds(won, results[0].by_seed[task]) for task, won in by_seed.items()} if results else {}
            )
            identity = identities[own[0][0].policy]
            results.append(CaseResult(own[0][0], identity, by_task, by_seed, outcomes, paired, task_by_task))
        seeds = [seed for _, _, seed, _ in episodes]
        return cls(tuple(results), tuple(results[0].by_task), (min(seeds), max(seeds)))

    @property
    def trained(self) -> bool:
        """Whether every policy that was run has trained weights."""
        return all(result.identity.trained for result in self.cases)

    @property
    def no_blind_row(self) -> str | None:
        """Why no row is of a policy without eyes, None where one is."""
        if any(is_blind(result.identity) for result in self.cases):
            return None
        return (
            "no row of a blind policy; train one with `tracekit train --blind`, then give --blind DIR (a recording has "
            "one row alone: evaluate its seeds without --record)"
        )

    def to_json(self) -> dict[str, Any]:
        """The object that `evaluate --json` prints."""
        return {
            "tasks": list(self.tasks),
            "seeds": list(self.seeds),
            "scenes": Environment.version(),
            "policy_trained": self.trained,
            "no_blind_row": self.no_blind_row,
            "configurations": [result.to_json() for result in self.cases],
        }

    def table(self) -> Table:
        """One row per case; a column per task where there are several."""
        table = Table(title=f"Closed-loop success, seeds {self.seeds[0]} to {self.seeds[1]} of every task")
        table.add_column("configuration")
        for heading in ("success", "95 %", *(self.tasks if len(self.tasks) > 1 else ()), "paired difference"):
            table.add_column(heading, justify="right")
        for heading in ("key poses", "step p50 / p95 ms", "pruned 2D / 3D"):
            table.add_column(heading, justify="right")
        for result in self.cases:
            low, high = result.interval
            tasks = [f"{won}/{count}" for won, count in result.by_task.values()] if len(self.tasks) > 1 else []
            table.add_row(
                _named(result.case),
                f"{result.successes}/{len(result.outcomes)} = {100 * result.success_rate:.0f} %",
                f"{100 * low:.0f} to {100 * high:.0f}",
                *tasks,
                _difference(result.paired),
                f"{np.mean([outcome.steps for outcome in result.outcomes]):.1f}",
                f"{result.step_ms(50):.0f} / {result.step_ms(95):.0f}",
                f"{100 * result.pruned('image'):.0f} / {100 * result.pruned('point'):.0f} %",
            )
        return table

    def task_table(self) -> Table:
        """One row per case and task, with intervals and paired differences of each task."""
        table = Table(title="The same, task by task")
        table.add_column("configuration")
        table.add_column("task")
        for heading in ("success", "95 %", "paired difference"):
            table.add_column(heading, justify="right")
        for result in self.cases:
            for task, (won, count) in result.by_task.items():
                low, high = wilson_interval(won, count)
                table.add_row(
                    _named(result.case),
                    task,
                    f"{won}/{count} = {100 * won / count:.0f} %",
                    f"{100 * low:.0f} to {100 * high:.0f}",
                    _difference(result.paired_by_task.get(task)),
                )
        return table


def _named(case: Case) -> str:
    """Name and, where they change what the numbers mean, labels of the configuration."""
    labels = case.configuration.labels
    return f"{case.name} ({', '.join(labels)})" if labels else case.name


def _paired_seeds(here: Mapping[int, bool], there: Mapping[int, bool]) -> PairedDifference:
    seeds = sorted(here)
    return paired_difference([here[seed] for seed in seeds], [there[seed] for seed in seeds])


def _paired_json(paired: PairedDifference | None) -> dict[str, Any] | None:
    if paired is None:
        return None
    return {
        "difference": paired.rate,
        "interval": list(paired.interval),
        "gained": paired.gained,
        "lost": paired.lost,
    }


def _difference(paired: PairedDifference | None) -> str:
    if paired is None:
        return ""
    low, high = paired.interval
    return f"{100 * paired.rate:+.0f} ({100 * low:+.0f} to {100 * high:+.0f})"
