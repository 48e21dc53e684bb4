"""What a decision costs: every pruner from what it reads, and Algorithm 1 stage by stage beside plain versions of it.

Scores and observables are random at the sizes of the release (256 image and 256 point tokens, 32 layers of 32 heads):
time depends on sizes and hardly on values. Sides take turns, so that a busy machine slows all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from tracekit.bench.literal import LiteralState, decide_literally, sets_by_every_cut, sets_by_scikit_learn
from tracekit.errors import ConfigError, TracekitError
from tracekit.fingerprint import environment_fingerprint
from tracekit.pruning import PRUNERS, DecisionKey, Pruner, Reduction, Shape, reduce
from tracekit.pruning.tri_stage import TriStageConfig, decide, decide_episode, initial_state
from tracekit.pruning.vla_pruner import VlaPrunerConfig
from tracekit.testing import random_observables, random_scores

__all__ = ["DECISION_STAGES", "PAPER_MS", "PrunerCost", "PrunersReport", "bench_pruners"]

DECISION_STAGES = ("stage3", "stage1", "stage2", "fuse")
PAPER_MS = {"stage1": 12.0, "stage2": 38.0, "stage3": 11.0, "full": 61.0}
"""Method cost per control step as published (Table 4), on an A100; its scope is not defined there."""

SHAPE = Shape(256, 256)
KEY = DecisionKey(0, 1, 2)
LAYERS, HEADS, WIDTH = 32, 32, 4096
LONG, SHORT = 1000, 4
"""Steps of an episode that is decided in one call, and of one that is decided step by step."""

Action = Callable[[], object]


@dataclass(frozen=True, slots=True)
class PrunerCost:
    """`single_ms`: one decision, median over rounds, and `spread_ms` their range. `batched_us`: per step of an episode.

    `reduction_ms`: from attention rows and norms to scores, None for a pruner that reads the observables itself (its
    decision has that inside). `stages_ms`: of one decision, where the method has stages. `episode_steps`: how many
    steps the episode has; `in_one_call`: whether they are decided in one call.
    """

    single_ms: float
    spread_ms: float
    batched_us: float
    reduction_ms: float | None
    stages_ms: dict[str, float] | None
    episode_steps: int
    in_one_call: bool

    @property
    def total_ms(self) -> float:
        """Decision and reduction."""
        return self.single_ms + (self.reduction_ms or 0.0)


@dataclass(frozen=True, slots=True)
class PrunersReport:
    """What `tracekit bench pruners` prints; `pruners` by kind, and `tri_stage_scikit_learn` and `tri_stage_literal`.

    `skipped`: installed kinds that cannot be timed, and why.
    """

    pruners: dict[str, PrunerCost]
    skipped: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "pruners": {name: asdict(cost) | {"total_ms": cost.total_ms} for name, cost in self.pruners.items()},
            "skipped": self.skipped,
            "paper_ms": PAPER_MS,
            "image_tokens": SHAPE.n_2d,
            "point_tokens": SHAPE.n_3d,
            "layers": LAYERS,
            "heads": HEADS,
            "fingerprint": environment_fingerprint(),
        }


@dataclass(frozen=True, slots=True)
class _Side:
    """`single` decides once; `episode` decides `steps` steps; `timed`, where there are stages, decides once too."""

    single: Action
    episode: Action
    steps: int
    timed: Callable[[_Stages], object] | None = None
    reduces: bool = False
    in_one_call: bool = False
    repeats: int = 20


class _Stages:
    """Adds up seconds per stage."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(DECISION_STAGES, 0.0)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - start


def bench_pruners(
    *, rounds: int = 7, kinds: Sequence[str] = (), progress: Callable[[str, int, int], None] | None = None
) -> PrunersReport:
    """Time the built-in and installed pruners, or those of `kinds`, each with its default configuration.

    With `tri_stage` come the same algorithm patch by patch in plain Python, its k-means solved by trying every cut
    (`tri_stage_literal`) or by scikit-learn (`tri_stage_scikit_learn`). Without `kinds`, an installed pruner that fails
    is left out and the report says why. Raises ConfigError for an unknown kind, one of `kinds` that fails, or fewer
    than one round.
    """
    if rounds < 1:
        raise ConfigError(f"--rounds {rounds}: give at least 1")
    unknown = [kind for kind in kinds if kind not in PRUNERS]
    if unknown:
        raise ConfigError(f"--pruner {unknown[0]}: no such pruner; there are: {', '.join(PRUNERS)}")
    sides: dict[str, _Side] = {}
    skipped: dict[str, str] = {}
    for kind in kinds or list(PRUNERS):
        try:
            sides |= _tri_stage_sides() if kind == "tri_stage" else {kind: _side(PRUNERS[kind])}
        except TracekitError as error:
            if kinds:
                raise
            skipped[kind] = str(error)
    report = progress or (lambda *_: None)
    seen = random_observables(SHAPE, layers=LAYERS, heads=HEADS)
    reduction = _turns({"reduction": lambda: reduce(seen, Reduction(), SHAPE)}, rounds, 5, report)["reduction"]
    singles: dict[str, list[float]] = {name: [] for name in sides}
    episodes: dict[str, list[float]] = {name: [] for name in sides}
    stages: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for turn in range(rounds + 1):  # the first warms up
        for number, (name, side) in enumerate(sides.items()):
            single, episode = _seconds(side.single, side.repeats), _seconds(side.episode, 1) / side.steps
            parts = _stage_seconds(side)
            if turn:
                singles[name].append(single * 1e3)
                episodes[name].append(episode * 1e6)
                stages[name] += [parts] if parts else []
            report("deciding", turn * len(sides) + number + 1, (rounds + 1) * len(sides))
    return PrunersReport(
        {
            name: PrunerCost(
                single_ms=median(singles[name]),
                spread_ms=max(singles[name]) - min(singles[name]),
                batched_us=median(episodes[name]),
                reduction_ms=median(reduction) if side.reduces else None,
                stages_ms=_medians(stages[name]) if stages[name] else None,
                episode_steps=side.steps,
                in_one_call=side.in_one_call,
            )
            for name, side in sides.items()
        },
        skipped,
    )


def _tri_stage_sides() -> dict[str, _Side]:
    scores, few = random_scores(SHAPE, LONG), random_scores(SHAPE, SHORT)
    config, state, one = TriStageConfig(), initial_state(TriStageConfig(), SHAPE), few.step(0)
    sides = {
        "tri_stage": _Side(
            single=lambda: decide(one, state, config, KEY, SHAPE),
            episode=lambda: decide_episode(scores, config, KEY, SHAPE),
            steps=LONG,
            timed=lambda stage: decide(one, state, config, KEY, SHAPE, stage=stage),
            reduces=True,
            in_one_call=True,
            repeats=50,
        )
    }
    for name, sets_of in (("scikit_learn", sets_by_scikit_learn), ("literal", sets_by_every_cut)):

        def decide_all(sets_of: Any = sets_of) -> None:
            state = LiteralState()
            for step in range(SHORT):
                decide_literally(few.step(step), state, DecisionKey(0, 1, step + 1), sets_of)

        sides[f"tri_stage_{name}"] = _Side(
            single=lambda s=sets_of: decide_literally(one, LiteralState(), KEY, s),  # type: ignore[misc]
            episode=decide_all,
            steps=SHORT,
            timed=lambda stage, s=sets_of: decide_literally(one, LiteralState(), KEY, s, stage),  # type: ignore[misc]
            reduces=True,
            repeats=1,
        )
    return sides


def _side(method: Pruner) -> _Side:
    """A pruner with its defaults, step by step; VLA-Pruner without its warm-up, in which it does nothing."""
    try:
        config = VlaPrunerConfig(warmup="none") if method.kind == "vla_pruner" else method.config()
    except TypeError as error:
        raise ConfigError(f"pruner {method.kind!r}: its options lack defaults to time it with ({error})") from error
    wide = {"layers": LAYERS, "heads": HEADS, "width": WIDTH}
    steps: list[Any] = [None] * SHORT
    if method.reads == "scores":
        steps = [random_scores(SHAPE, SHORT).step(step) for step in range(SHORT)]
    elif method.reads == "observables":
        steps = [random_observables(SHAPE, step, **wide) for step in range(SHORT)]
    state = method.initial_state(config, SHAPE)
    patch = random_observables(SHAPE).patch

    def decide_step(seen: Any, state: Any, step: int) -> Any:
        return method.decide(seen, state, config, DecisionKey(0, 1, step), SHAPE, patch=patch)

    _, before = decide_step(steps[0], state, 1)

    def decide_all() -> None:
        now = state
        for step, seen in enumerate(steps, 1):
            _, now = decide_step(seen, now, step)

    decide_all()  # a plug-in that fails does so here, before anything is timed

    return _Side(
        single=lambda: decide_step(steps[1], before, 2),
        episode=decide_all,
        steps=SHORT,
        reduces=method.reads == "scores",
        repeats=3,
    )


def _turns(
    actions: dict[str, Action], rounds: int, repeats: int, report: Callable[[str, int, int], None]
) -> dict[str, list[float]]:
    """Milliseconds per call of every action in every round, the first of which is not counted."""
    found: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(rounds + 1):
        for name, action in actions.items():
            taken = _seconds(action, repeats) * 1e3
            found[name] += [taken] if turn else []
        report("reducing", turn + 1, rounds + 1)
    return found


def _seconds(action: Action, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        action()
    return (time.perf_counter() - start) / repeats


def _stage_seconds(side: _Side) -> dict[str, float] | None:
    if side.timed is None:
        return None
    stages = _Stages()
    for _ in range(side.repeats):
        side.timed(stages)
    return {stage: seconds / side.repeats for stage, seconds in stages.seconds.items()}


def _medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Milliseconds per stage."""
    return {stage: median(one[stage] for one in rounds) * 1e3 for stage in DECISION_STAGES}
