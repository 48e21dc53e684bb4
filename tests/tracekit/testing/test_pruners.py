"""The test kit passes every pruner that ships, and catches each way of breaking the contract."""

import dataclasses
import random
import threading

import numpy as np
import pytest

from tracekit.pruning import PRUNERS, Decision, Pruner, Reduction, Shape
from tracekit.pruning.fastv import FASTV, FastVConfig
from tracekit.pruning.naive import NaiveConfig
from tracekit.pruning.sp_vla import SpVlaConfig
from tracekit.pruning.tri_stage import TriStageConfig
from tracekit.pruning.vla_pruner import VlaPrunerConfig
from tracekit.testing import check_pruner, random_observables, random_scores

CONFIGS = [
    ("none", None),
    ("naive", NaiveConfig(redraw="episode")),
    ("tri_stage", None),
    ("tri_stage", TriStageConfig(window="window_mean", draw="sticky", stages=("s1", "s2", "s3"), moving_view="on")),
    ("fastv", FastVConfig(query="action")),
    ("sp_vla", None),
    ("sp_vla", SpVlaConfig(budget="velocity")),
    ("vla_pruner", None),
    ("vla_pruner", VlaPrunerConfig(variant="released", warmup="denoise")),
]


@pytest.mark.parametrize(("kind", "config"), CONFIGS)
def test_every_pruner_that_ships_keeps_the_contract(kind, config):
    check_pruner(PRUNERS[kind], config)


@pytest.mark.parametrize(
    "config",
    [
        TriStageConfig(budget="soft"),
        TriStageConfig(budget="hard_topk"),
        TriStageConfig(reduction=Reduction(correspondence="index")),
        TriStageConfig(tau_2d=1.0, tau_3d=1.0, unprojected_points="drop"),  # Algorithm 1 leaves no point token
    ],
)
def test_options_over_points(config):
    check_pruner(PRUNERS["tri_stage"], config, shapes=(Shape(256, 256),))


def test_two_views():
    check_pruner(PRUNERS["tri_stage"], shapes=(Shape(512, 256, 2, (False, True)),))


def everything(shape):
    return Decision(np.ones(shape.n_2d, bool), np.ones(shape.n_2d, bool) if shape.n_3d else None, pruned=False)


def half(shape, flags):
    return Decision(flags, None, keep_3d_tokens=np.ones(shape.n_3d, bool) if shape.n_3d else None)


def made(decide, **changes):
    options = {
        "kind": "mine",
        "config": NaiveConfig,
        "observes": "forward",
        "reads": "scores",
        "requires": lambda config: frozenset(),
        "initial_state": lambda config, shape: np.zeros(1),
        "decide": decide,
    }
    return Pruner(**{**options, **changes})


def test_a_sound_pruner_passes():
    def decide(seen, state, config, key, shape, **_):
        if seen is None:
            return everything(shape), state
        return half(shape, seen.norm_2d >= np.median(seen.norm_2d)), state + 1

    check_pruner(made(decide, requires=lambda config: frozenset({"norm_2d"})))


CALLS, CACHED, RUNNING = [], {}, []


def writes_state(seen, state, config, key, shape, **_):
    state[0] += 1
    return everything(shape), state


def writes_scores(seen, state, config, key, shape, **_):
    if seen is not None:
        seen.norm_2d[0] = 0
    return everything(shape), state


def draws_globally(seen, state, config, key, shape, **_):
    return half(shape, np.random.random(shape.n_2d) < 0.5), state  # noqa: NPY002  # this is the fault


def draws_from_random(seen, state, config, key, shape, **_):
    return half(shape, np.arange(shape.n_2d) > random.randrange(100)), state


def draws_freshly(seen, state, config, key, shape, **_):
    return half(shape, np.random.default_rng().random(shape.n_2d) < 0.5), state


def remembers_calls(seen, state, config, key, shape, **_):
    CALLS.append(key)
    return half(shape, np.arange(shape.n_2d) >= len(CALLS) % 7), state


def cached(seen, state, config, key, shape, **_):
    flags = np.arange(shape.n_2d) % 5 < 1 + key.episode_uid % 3
    return half(shape, CACHED.setdefault((key.step, shape.n_3d), flags)), state


def remembers_company(seen, state, config, key, shape, **_):
    if key.step == 1:
        RUNNING.clear()
    RUNNING.append(key)
    return half(shape, np.arange(shape.n_2d) >= len(RUNNING)), state


def knows_threads(seen, state, config, key, shape, **_):
    return half(shape, np.arange(shape.n_2d) > (threading.current_thread() is threading.main_thread())), state


def expects_something(seen, state, config, key, shape, **_):
    return half(shape, seen.norm_2d >= 0), state


def takes_no_keywords(seen, state, config, key, shape, patch=None):
    return everything(shape), state


def reads_undeclared(seen, state, config, key, shape, **_):
    return everything(shape) if seen is None else half(shape, seen.norm_2d >= np.median(seen.norm_2d)), state


def reads_undeclared_patch(seen, state, config, key, shape, *, patch, **_):
    return half(shape, np.arange(shape.n_2d) > patch[0]), state


def keeps_nothing(seen, state, config, key, shape, **_):
    return half(shape, np.zeros(shape.n_2d, bool)), state


def keeps_no_points(seen, state, config, key, shape, **_):
    return Decision(np.ones(shape.n_2d, bool), np.zeros(shape.n_2d, bool) if shape.n_3d else None), state


def wrong_type(seen, state, config, key, shape, **_):
    return half(shape, np.ones(shape.n_2d)), state


def wrong_shape(seen, state, config, key, shape, **_):
    return half(shape, np.ones(shape.n_2d + 1, bool)), state


def no_3d(seen, state, config, key, shape, **_):
    return Decision(np.ones(shape.n_2d, bool), None), state


def both_3d(seen, state, config, key, shape, **_):
    return dataclasses.replace(everything(shape), keep_3d_tokens=np.ones(shape.n_3d, bool)), state


def claims_unpruned(seen, state, config, key, shape, **_):
    flags = np.arange(shape.n_2d) > 0
    return dataclasses.replace(half(shape, flags), pruned=False), state


def forgets_state(seen, state, config, key, shape, **_):
    return everything(shape)


@pytest.mark.parametrize(
    ("decide", "message"),
    [
        (writes_state, "wrote to the state"),
        (draws_globally, "global random generator"),
        (draws_from_random, "global random generator"),
        (draws_freshly, "decided again"),
        (remembers_calls, "decided again"),
        (cached, "in a process of its own"),
        (remembers_company, "runs beside it"),
        (knows_threads, "runs in a thread"),
        (expects_something, "step 1: .* shown None, as nothing was observed yet, failed with AttributeError"),
        (takes_no_keywords, "given observed, patch and stage .* failed with TypeError"),
        (reads_undeclared, "reads 'norm_2d', which requires does not name"),
        (reads_undeclared_patch, "failed with TypeError: 'NoneType'"),
        (keeps_nothing, "step 1: no image token is kept"),
        (keeps_no_points, "step 1: no patch keeps its points"),
        (wrong_type, r"keep_2d is float64\(256,\); it must be bool\(256,\)"),
        (wrong_shape, r"keep_2d is bool\(257,\)"),
        (no_3d, "neither keep_3d_patches nor keep_3d_tokens"),
        (both_3d, "both keep_3d_patches and keep_3d_tokens"),
        (claims_unpruned, "pruned is False, but a token is dropped"),
        (forgets_state, r"must return \(Decision, state\)"),
    ],
)
def test_a_broken_pruner_is_caught(decide, message):
    with pytest.raises(AssertionError, match=message):
        check_pruner(made(decide))


def test_a_pruner_that_writes_to_its_input_is_caught():
    with pytest.raises(AssertionError, match="read-only"):
        check_pruner(made(writes_scores))


def test_observables_that_are_not_declared_are_hidden():
    def decide(seen, state, config, key, shape, **_):
        return half(shape, seen.last_row[1][: shape.n_2d] >= 0), state

    options = {"reads": "observables", "observes": "in_network"}
    with pytest.raises(AssertionError, match="shown what requires names, failed with TypeError: 'NoneType'"):
        check_pruner(made(decide, **options))
    check_pruner(made(decide, **options, requires=lambda config: frozenset({"last_row"})))


def test_unknown_requirements_are_caught():
    def decide(seen, state, config, key, shape, **_):
        return everything(shape), state

    with pytest.raises(AssertionError, match=r"\['entropy'\]"):
        check_pruner(made(decide, requires=lambda config: frozenset({"entropy", "norm_2d"})))


def test_a_seam_inside_the_network_that_disagrees_is_caught():
    def other(layer, seen, state, config, key, shape):
        decision = FASTV.decide_at(layer, seen, state, config, key, shape)
        return decision and dataclasses.replace(decision, keep_2d=~decision.keep_2d)

    with pytest.raises(AssertionError, match="decide_at and decide disagree"):
        check_pruner(dataclasses.replace(FASTV, decide_at=other))
    with pytest.raises(AssertionError, match="exactly one layer, not after 0"):
        check_pruner(dataclasses.replace(FASTV, decide_at=lambda *_: None))


def test_a_state_that_loses_something_is_caught():
    @dataclasses.dataclass(frozen=True)
    class State:
        count: np.ndarray

        def to_arrays(self):
            return {"count": self.count}

        @classmethod
        def from_arrays(cls, arrays):
            return cls(arrays["count"] * 0)

    def decide(seen, state, config, key, shape, **_):
        return everything(shape), State(state.count + 1)

    with pytest.raises(AssertionError, match="from_arrays"):
        check_pruner(made(decide, initial_state=lambda config, shape: State(np.zeros(1))))


def test_inputs_are_the_same_for_the_same_seed():
    shape = Shape(256, 256)
    for make in (lambda seed: random_scores(shape, 3, seed), lambda seed: random_observables(shape, seed)):
        one, again, other = make(1), make(1), make(2)
        arrays = [f.name for f in dataclasses.fields(one) if isinstance(getattr(one, f.name), np.ndarray)]
        assert all(np.array_equal(getattr(one, name), getattr(again, name)) for name in arrays)
        assert any(not np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays)
