"""The timing pass: a sample of steps, all variants interleaved, at least five rounds, ratios of medians over them.

Speed drifts on a shared machine: interleaved, all variants meet the same drift, and a burst of other work spoils a
round and no median. Steps of
every kind that a variant takes (cold start, refresh, pruned, repeated) are in its sample, weighted by their share, so
that the mean is that of whole episodes. Nothing here feeds a decision: the pruner's state before each sampled step
comes from the accuracy pass.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from replay.accuracy import EpisodeReplay, StepReplay
from tracekit.config import Configuration
from tracekit.engine import Controller
from tracekit.policy import Policy
from tracekit.profiling import STAGES

__all__ = ["SampledStep", "TimingOptions", "VariantTiming", "sample_of", "sample_steps", "time_variants"]


@dataclass(frozen=True, slots=True)
class TimingOptions:
    """`steps`: control steps in the sample, the first of an episode among them. `rounds`: interleaved repetitions."""

    steps: int = 3
    rounds: int = 5


@dataclass(frozen=True, slots=True)
class SampledStep:
    """A step to be timed: which episode and step, and the share of all steps that it stands for."""

    episode: int
    step: int
    weight: float


@dataclass(frozen=True, slots=True)
class VariantTiming:
    """One variant over all rounds. `wall_ms`: (rounds,) weighted mean step time. `stages_ms`: (rounds, stages)."""

    wall_ms: npt.NDArray[np.float64]
    stages_ms: npt.NDArray[np.float64]

    @property
    def median_ms(self) -> float:
        """Median over the rounds."""
        return float(np.median(self.wall_ms))

    @property
    def spread_ms(self) -> float:
        """Largest minus smallest round."""
        return float(np.ptp(self.wall_ms))

    def stage_ms(self, *stages: str) -> float:
        """Median over the rounds of the sum of `stages`."""
        columns = [STAGES.index(stage) for stage in stages]
        return float(np.median(self.stages_ms[:, columns].sum(axis=1)))

    @property
    def other_ms(self) -> float:
        """What the stages do not account for."""
        return float(np.median(self.wall_ms - self.stages_ms.sum(axis=1)))


def sample_steps(
    lengths: Sequence[int], wanted: int, kinds: Sequence[Sequence[Hashable]] | None = None
) -> tuple[SampledStep, ...]:
    """Steps to time: one first step, which starts cold, and `wanted` - 1 later ones spread evenly over the episodes.

    `lengths`: steps of every episode. `kinds`: per episode and step, what makes it cost what it costs (a refresh, a
    repeated action); every kind among the later steps is then timed at least once. Weights are shares of all steps: the
    weighted mean is that of whole episodes.
    """
    total = sum(lengths)
    later: dict[Hashable, list[tuple[int, int]]] = {}
    for episode, length in enumerate(lengths):
        for step in range(1, length):
            later.setdefault(None if kinds is None else kinds[episode][step], []).append((episode, step))
    first = SampledStep(0, 0, len(lengths) / total if later else 1.0)
    chosen = dict.fromkeys(later, 1)
    for _ in range(wanted - 1 - len(later)):
        rest = [kind for kind in later if chosen[kind] < len(later[kind])]
        if not rest:
            break
        chosen[max(rest, key=lambda kind: len(later[kind]) / chosen[kind])] += 1
    picks = []
    for kind, steps in later.items():
        places = [int((index + 0.5) * len(steps) / chosen[kind]) for index in range(chosen[kind])]
        picks += [SampledStep(*steps[place], len(steps) / total / chosen[kind]) for place in places]
    return (first, *sorted(picks, key=lambda pick: (pick.episode, pick.step)))


def sample_of(config: Configuration, episodes: Sequence[EpisodeReplay], wanted: int) -> tuple[SampledStep, ...]:
    """The steps of `episodes` to time for `config`; where nothing is pruned or repeated, all later steps are alike."""
    lengths = [len(episode.steps) for episode in episodes]
    if not _carries(config):
        return sample_steps(lengths, wanted)
    kinds = [[_kind(step) for step in episode.steps] for episode in episodes]
    return sample_steps(lengths, wanted, kinds)


def _kind(step: StepReplay) -> Hashable:
    """What a step costs: repeated, unpruned, or pruned from some pass on."""
    result = step.result
    return result.repeated, result.pruned_from, bool(result.kept[-1].all())


def _carries(config: Configuration) -> bool:
    """Whether a step depends on the ones before it or is pruned; without, any step of the trace stands for another."""
    return config.kind != "none" or config.reuse.kind == "skip_frame"


def time_variants(
    variants: Mapping[str, tuple[Policy, Configuration, Sequence[EpisodeReplay]]],
    uids: Sequence[int],
    options: TimingOptions,
    advance: Callable[[], None],
) -> dict[str, VariantTiming]:
    """Time every variant on the sampled steps; `uids`: of the episodes. `advance` is called once per timed step."""
    samples = {name: sample_of(config, steps, options.steps) for name, (_, config, steps) in variants.items()}
    walls: dict[str, list[float]] = {name: [] for name in variants}
    stages: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in variants}
    for round_index in range(options.rounds):
        names = list(variants)
        shift = round_index % max(1, len(names))
        for name in names[shift:] + names[:shift]:
            policy, config, episodes = variants[name]
            number = names.index(name)
            wall, parts = 0.0, np.zeros(len(STAGES))
            for chosen in samples[name]:
                step = episodes[chosen.episode].steps[chosen.step]
                step_wall, step_parts = _time_step(policy, config, step, uids[chosen.episode], (number, chosen.episode))
                wall += chosen.weight * step_wall
                parts += chosen.weight * step_parts
                advance()
            walls[name].append(wall)
            stages[name].append(parts)
    return {name: VariantTiming(np.array(walls[name]), np.stack(stages[name])) for name in variants}


def _time_step(
    policy: Policy, config: Configuration, step: StepReplay, uid: int, index: tuple[int, int]
) -> tuple[float, npt.NDArray[np.float64]]:
    """(wall ms, stages ms) of one step, from the pruner's state that it had."""
    controller = Controller(policy, config)
    recorded = step.recorded
    memory = step.memory if _carries(config) else None
    controller.reset(uid, steps=recorded.number - 1, memory=memory, index=index)
    result = controller.step(recorded.observation, recorded.draws, recorded.seen, recorded.displacement_m)
    return result.wall_ns / 1e6, result.times_ns.sum(axis=1) / 1e6
