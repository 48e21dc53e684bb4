"""What every pruner must hold to: pure, deterministic, independent of order and company, well-shaped."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from tracekit.layout import PATCHES_PER_VIEW
from tracekit.pruning import Decision, DecisionKey, Observables, Pruner, Scores, Shape, decision_digest
from tracekit.testing.inputs import random_observables, random_scores

__all__ = ["check_pruner"]

STEPS = 5
EPISODES = (3, 2**63 + 11)


def check_pruner(pruner: Pruner, config: Any = None, *, shapes: tuple[Shape, ...] | None = None, seed: int = 0) -> None:
    """Run `pruner` on random episodes and raise AssertionError, saying what is wrong, unless it keeps the contract.

    Inputs and states are not written to; equal calls give equal answers, whatever the global random generators hold and
    without drawing from them; two episodes side by side, or in threads, decide as each alone; masks have the documented
    shapes and types and leave a token per modality; a state that offers `to_arrays` survives `from_arrays`; what is
    decided inside the network equals what is decided from the recording. `config`: default `pruner.config()`. `shapes`:
    default one view with 256 points, and one without points unless the pruner needs them.
    """
    config = pruner.config() if config is None else config
    if shapes is None:
        views = (Shape(PATCHES_PER_VIEW, 256), Shape(PATCHES_PER_VIEW, 0))
        shapes = views[:1] if pruner.needs_points else views
    _check_requirements(pruner, config)
    for shape in shapes:
        episodes = {uid: _Episode(pruner, config, shape, uid, seed + index) for index, uid in enumerate(EPISODES)}
        alone = {uid: list(episode.run()) for uid, episode in episodes.items()}
        for decisions in alone.values():
            for step, decision in enumerate(decisions, 1):
                _check_decision(decision, shape, step)
        digests = {uid: decision_digest(decisions) for uid, decisions in alone.items()}
        _check_repetition(episodes, digests)
        _check_company(episodes, digests)


class _Episode:
    """One random episode, decided step by step; every input is read-only."""

    def __init__(self, pruner: Pruner, config: Any, shape: Shape, uid: int, seed: int) -> None:
        self.pruner, self.config, self.shape, self.uid = pruner, config, shape, uid
        self.seen = _inputs(pruner, shape, seed)
        rng = np.random.default_rng(seed)
        self.patches = rng.integers(-1, shape.n_2d, (STEPS, shape.n_3d)).astype(np.int32)
        for seen in self.seen:
            _freeze(seen)
        self.patches.flags.writeable = False

    def run(self) -> Iterator[Decision]:
        """The decisions of all steps."""
        state = self.pruner.initial_state(self.config, self.shape)
        for index in range(STEPS):
            decision, state = self.step(index, state)
            yield decision

    def step(self, index: int, state: Any) -> tuple[Decision, Any]:
        """One step, with the checks that concern a single call."""
        key = DecisionKey(int(getattr(self.config, "seed", 0)), self.uid, index + 1)
        before, generators = copy.deepcopy(state), _global_generators()
        patch = self.patches[index] if self.shape.n_3d else None
        answer = self.pruner.decide(self.seen[index], state, self.config, key, self.shape, patch=patch)
        _require(isinstance(answer, tuple) and len(answer) == 2, "decide must return (Decision, state)")
        _require(_same(before, state), "decide wrote to the state it was given; return a new one")
        untouched = generators == _global_generators()
        _require(untouched, "decide drew from a global random generator; draw with tracekit.philox")
        if self.pruner.decide_at is not None:
            self._check_inside(index, state, key, answer)
        return answer[0], _stored_and_back(answer[1])

    def _check_inside(self, index: int, state: Any, key: DecisionKey, answer: tuple[Decision, Any]) -> None:
        decide_at, remember, seen = self.pruner.decide_at, self.pruner.remember, self.seen[index]
        if decide_at is None or remember is None or not isinstance(seen, Observables):
            raise AssertionError(
                "a pruner that decides inside the network reads observables and has `remember` as well"
            )
        layers = range(len(seen.attention))
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
    tokens, patches = decision.keep_3d_tokens, decision.keep_3d_patches
    _require_array(decision.keep_2d, (shape.n_2d,), np.bool_, where + "keep_2d")
    _require(bool(decision.keep_2d.any()), where + "no image token is kept; at least one must be")
    if not shape.n_3d:
        _require(tokens is None and patches is None, where + "a 3D mask for a policy without points")
    elif tokens is not None:
        _require(patches is None, where + "both keep_3d_patches and keep_3d_tokens are given; give one")
        _require_array(tokens, (shape.n_3d,), np.bool_, where + "keep_3d_tokens")
        _require(bool(tokens.any()), where + "no point token is kept; at least one must be")
    else:
        _require(patches is not None, where + "neither keep_3d_patches nor keep_3d_tokens is given")
        _require_array(patches, (shape.n_2d,), np.bool_, where + "keep_3d_patches")
    for name, dtype in (("s1", np.uint8), ("s2", np.uint8), ("cluster", np.int8), ("conflict", np.bool_)):
        if getattr(decision, name) is not None:
            _require_array(getattr(decision, name), (shape.n_2d,), dtype, where + name)
    for name, margin in decision.margins.items():
        _require_array(margin, (shape.n_2d,), np.float64, f"{where}margins[{name!r}]")
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
    """Side by side in reverse order, and in threads: as alone."""
    running = {uid: episode.run() for uid, episode in reversed(list(episodes.items()))}
    together: dict[int, list[Decision]] = {uid: [] for uid in episodes}
    for _ in range(STEPS):
        for uid, decisions in running.items():
            together[uid].append(next(decisions))
    with ThreadPoolExecutor(len(episodes)) as pool:
        threaded = dict(zip(episodes, pool.map(lambda episode: list(episode.run()), episodes.values()), strict=True))
    for uid, digest in digests.items():
        _require(decision_digest(together[uid]) == digest, "an episode decides otherwise when another runs beside it")
        _require(decision_digest(threaded[uid]) == digest, "an episode decides otherwise when another runs in a thread")


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


def _require_array(array: Any, shape: tuple[int, ...], dtype: type, name: str) -> None:
    _require(isinstance(array, np.ndarray), f"{name} is a {type(array).__name__}; it must be a numpy array")
    _require(
        array.shape == shape and array.dtype == dtype,
        f"{name} is {array.dtype}{array.shape}; it must be {np.dtype(dtype)}{shape}",
    )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)
