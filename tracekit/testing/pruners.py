"""What every pruner must hold to: pure, deterministic, independent of order and company, well-shaped."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from tracekit.layout import PATCHES_PER_VIEW
from tracekit.pruning import Decision, DecisionKey, Observables, Pruner, Scores, Shape, decision_digest
from tracekit.pruning.base import untimed
from tracekit.pruning.checking import decision_fault, in_one_line
from tracekit.testing.fresh import in_fresh_process
from tracekit.testing.inputs import LAYERS, declared, random_observables, random_scores

__all__ = ["check_pruner"]

STEPS = 5
EPISODES = (3, 2**63 + 11)


def check_pruner(pruner: Pruner, config: Any = None, *, shapes: tuple[Shape, ...] | None = None, seed: int = 0) -> None:
    """Run `pruner` on random episodes and raise AssertionError, saying what is wrong, unless it keeps the contract.

    `decide` is called as a replay calls it, with `observed`, `patch` and `stage`; it is shown what `requires` names and
    nothing else. A pruner that observes the `forward` pass is also run a step behind: step 1 is shown None, and later
    ones what was observed of some patches. Inputs and states are not written to; equal calls give equal answers,
    whatever the global random generators hold and without drawing from them; two episodes one after the other, side by
    side, or in threads, decide as each in a process of its own (where the system can fork one). Masks have the
    documented shapes and types, and keep a token per modality, unless the decision gives candidate sets (`s1`): a rule
    by patch, such as Algorithm 1, may empty a modality. A state that offers `to_arrays` survives `from_arrays`; what is
    decided inside the network equals what is decided from the recording. `config`: default `pruner.config()`. `shapes`:
    default one view with 256 points, and one without points unless the pruner needs them.
    """
    config = pruner.config() if config is None else config
    if shapes is None:
        views = (Shape(PATCHES_PER_VIEW, 256), Shape(PATCHES_PER_VIEW, 0))
        shapes = views[:1] if pruner.needs_points else views
    _check_requirements(pruner, config)
    lags = (False, True) if pruner.observes == "forward" else (False,)
    for shape in shapes:
        pruner.initial_state(config, shape)  # compiles what is compiled before processes are forked
        for lagged in lags:
            episodes = {
                uid: _Episode(pruner, config, shape, uid, seed + index, lagged=lagged)
                for index, uid in enumerate(EPISODES)
            }
            afresh = {uid: in_fresh_process(episode.digest) for uid, episode in episodes.items()}
            digests = {uid: episode.digest() for uid, episode in episodes.items()}
            _check_repetition(episodes, digests)
            for uid, digest in afresh.items():
                _require(
                    digest in {None, digests[uid]},
                    "an episode decides otherwise in a process of its own than after another; a pruner may depend on "
                    f"its arguments alone (alone: {digest})",
                )
            _check_company(episodes, digests)
            for episode in episodes.values():
                episode.check_undeclared()


class _Episode:
    """One random episode, decided step by step; every input is read-only.

    `lagged`: each step is shown the one before, of which some patches were observed, and the first step nothing.
    """

    def __init__(self, pruner: Pruner, config: Any, shape: Shape, uid: int, seed: int, *, lagged: bool = False) -> None:
        self.pruner, self.config, self.shape, self.uid = pruner, config, shape, uid
        self.required = pruner.requires(config)
        self.seen = [declared(seen, self.required, shape) for seen in _inputs(pruner, shape, seed)]
        self.others = _inputs(pruner, shape, seed + len(EPISODES))
        self.observed: list[Any] = [None] * STEPS
        rng = np.random.default_rng(seed)
        self.patches = rng.integers(-1, shape.n_2d, (STEPS, shape.n_3d)).astype(np.int32)
        if lagged:
            self.seen, self.others = [None, *self.seen[:-1]], [None, *self.others[:-1]]
            self.observed = [None, None, *(rng.random((STEPS - 2, shape.n_2d)) < 0.7)]
        for seen in self.seen:
            _freeze(seen)
        self.patches.flags.writeable = False
        for flags in self.observed[2:] if lagged else ():
            flags.flags.writeable = False

    def run(self) -> Iterator[Decision]:
        """The decisions of all steps."""
        state = self.pruner.initial_state(self.config, self.shape)
        for index in range(STEPS):
            decision, state = self.step(index, state)
            yield decision

    def digest(self) -> str:
        """The digest of the decisions of all steps, one after the other."""
        return decision_digest(list(self.run()))

    def step(self, index: int, state: Any) -> tuple[Decision, Any]:
        """One step, with the checks that concern a single call."""
        key = DecisionKey(int(getattr(self.config, "seed", 0)), self.uid, index + 1)
        before, generators = copy.deepcopy(state), _global_generators()
        answer = self._decide(self.seen[index], state, key, index)
        _require(isinstance(answer, tuple) and len(answer) == 2, "decide must return (Decision, state)")
        _check_decision(answer[0], self.shape, index + 1)
        _require(_same(before, state), "decide wrote to the state it was given; return a new one")
        untouched = generators == _global_generators()
        _require(untouched, "decide drew from a global random generator; draw with tracekit.philox")
        if self.pruner.decide_at is not None:
            self._check_inside(index, state, key, answer)
        return answer[0], _stored_and_back(answer[1])

    def check_undeclared(self) -> None:
        """Scores come all six: a field that `requires` does not name may have other values and change nothing."""
        undeclared = _names(Scores) - self.required
        if self.pruner.reads != "scores" or not undeclared:
            return
        state = self.pruner.initial_state(self.config, self.shape)
        for index, (seen, other) in enumerate(zip(self.seen, self.others, strict=True)):
            key = DecisionKey(int(getattr(self.config, "seed", 0)), self.uid, index + 1)
            answer = self._decide(seen, state, key, index)
            for name in sorted(undeclared) if isinstance(seen, Scores) else ():
                changed = dataclasses.replace(seen, **{name: getattr(other, name)})
                decision, after = self._decide(changed, state, key, index)
                _require(
                    decision_digest([decision]) == decision_digest([answer[0]]) and _same(after, answer[1]),
                    f"decide reads {name!r}, which requires does not name",
                )
            state = answer[1]

    def _decide(self, seen: Any, state: Any, key: DecisionKey, index: int) -> Any:
        """`decide`, called as the engine calls it."""
        patch = self.patches[index] if self.shape.n_3d and "patch" in self.required else None
        try:
            return self.pruner.decide(
                seen,
                state,
                self.config,
                key,
                self.shape,
                observed=self.observed[index],
                patch=patch,
                stage=untimed,
            )
        except Exception as error:
            shown = "shown None, as nothing was observed yet" if seen is None else "shown what requires names"
            raise AssertionError(
                f"step {key.step}: decide, given observed, patch and stage and {shown}, failed with "
                f"{in_one_line(error)}"
            ) from error

    def _check_inside(self, index: int, state: Any, key: DecisionKey, answer: tuple[Decision, Any]) -> None:
        decide_at, remember, seen = self.pruner.decide_at, self.pruner.remember, self.seen[index]
        if decide_at is None or remember is None or not isinstance(seen, Observables):
            raise AssertionError(
                "a pruner that decides inside the network reads observables and has `remember` as well"
            )
        layers = range(LAYERS)
        answers = [decide_at(layer, seen, state, self.config, key, self.shape) for layer in layers]
        given = [decision for decision in answers if decision is not None]
        _require(len(given) == 1, f"decide_at must answer after exactly one layer, not after {len(given)}")
        _require(
            decision_digest(given) == decision_digest([answer[0]]),
            "decide_at and decide disagree on the same step",
        )
        remembered = remember(seen, state, self.config, self.shape)
        _require(_same(remembered, answer[1]), "remember and decide return different states for the same step")


def _inputs(pruner: Pruner, shape: Shape, seed: int) -> list[Scores | Observables | None]:
    """What the pruner reads at each step."""
    if pruner.reads == "scores":
        scores = random_scores(shape, STEPS, seed)
        return [scores.step(index) for index in range(STEPS)]
    if pruner.reads == "observables":
        return [random_observables(shape, seed * STEPS + index) for index in range(STEPS)]
    return [None] * STEPS


def _global_generators() -> tuple[Any, ...]:
    """The states of the generators that a pruner must neither read nor advance."""
    state = np.random.get_state(legacy=False)  # noqa: NPY002  # the legacy generator is what is watched
    return state["state"]["key"].tolist(), state["state"]["pos"], random.getstate()


def _check_requirements(pruner: Pruner, config: Any) -> None:
    known = {"nothing": set[str](), "scores": _names(Scores), "observables": _names(Observables)}[pruner.reads]
    unknown = set(pruner.requires(config)) - known - {"patch"}
    _require(not unknown, f"requires names {sorted(unknown)}, which are no fields of what the pruner reads")


def _names(cls: type) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def _check_decision(decision: Decision, shape: Shape, step: int) -> None:
    where = f"step {step}: "
    fault = decision_fault(decision, shape)
    _require(fault is None, where + (fault or ""))
    tokens, patches = decision.keep_3d_tokens, decision.keep_3d_patches
    if decision.s1 is None:
        _require(bool(decision.keep_2d.any()), where + "no image token is kept; at least one must be")
        _require(tokens is None or bool(tokens.any()), where + "no point token is kept; at least one must be")
        _require(patches is None or bool(patches.any()), where + "no patch keeps its points; at least one must")
    if not decision.pruned:
        everything = [mask for mask in (decision.keep_2d, tokens, patches) if mask is not None]
        _require(all(bool(mask.all()) for mask in everything), where + "pruned is False, but a token is dropped")


def _check_repetition(episodes: Mapping[int, _Episode], digests: Mapping[int, str]) -> None:
    for uid, episode in episodes.items():
        random.seed(uid)
        np.random.seed(uid % 2**32)  # noqa: NPY002  # a pruner must not notice
        _require(
            decision_digest(episode.run()) == digests[uid],
            "the same episode, decided again, gives other decisions; a pruner may depend on its arguments alone",
        )


def _check_company(episodes: Mapping[int, _Episode], digests: Mapping[int, str]) -> None:
    """Side by side in either order, and in threads: as one after the other."""
    for order in (tuple(episodes), tuple(reversed(tuple(episodes)))):
        for uid, decisions in _side_by_side(episodes, order).items():
            _require(
                decision_digest(decisions) == digests[uid], "an episode decides otherwise when another runs beside it"
            )
    with ThreadPoolExecutor(len(episodes)) as pool:
        threaded = dict(zip(episodes, pool.map(lambda episode: episode.digest(), episodes.values()), strict=True))
    _require(threaded == dict(digests), "an episode decides otherwise when another runs in a thread")


def _side_by_side(episodes: Mapping[int, _Episode], order: Iterable[int]) -> dict[int, list[Decision]]:
    """A step of each episode in turn."""
    running = {uid: episodes[uid].run() for uid in order}
    together: dict[int, list[Decision]] = {uid: [] for uid in episodes}
    for _ in range(STEPS):
        for uid, decisions in running.items():
            together[uid].append(next(decisions))
    return together


def _stored_and_back(state: Any) -> Any:
    """The state after `to_arrays` and `from_arrays`, if it offers them."""
    if not hasattr(state, "to_arrays"):
        return state
    arrays = state.to_arrays()
    _require(
        all(isinstance(array, np.ndarray) for array in arrays.values()), "to_arrays must give numpy arrays by name"
    )
    restored = type(state).from_arrays({name: array.copy() for name, array in arrays.items()})
    _require(_same(restored, state), "from_arrays(to_arrays()) is not the state it began with")
    return restored


def _same(one: Any, other: Any) -> bool:
    """Bitwise equality of states: arrays, dataclasses and containers of them."""
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.dtype == other.dtype and one.tobytes() == other.tobytes()
    if dataclasses.is_dataclass(one) and not isinstance(one, type):
        return type(one) is type(other) and all(_same(getattr(one, n), getattr(other, n)) for n in _names(type(one)))
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, tuple | list):
        return isinstance(other, tuple | list) and len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def _freeze(seen: Any) -> None:
    """Make the arrays of an input read-only."""
    if seen is None:
        return
    for name in _names(type(seen)):
        value = getattr(seen, name)
        for array in value.values() if isinstance(value, Mapping) else [value]:
            if isinstance(array, np.ndarray):
                array.flags.writeable = False


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)
