import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import scores as oracle
from tracekit.errors import ConfigError, TraceError
from tracekit.pruning import Observables, Reduction, Scores, Shape, reduce

SHAPE = Shape(6, 8)


def observables(seed=0, n_2d=6, n_3d=8, layers=5, heads=3, passes=3, **changes):
    rng = np.random.default_rng(seed)
    n = n_2d + n_3d

    def numbers(*shape):
        return rng.random(shape, np.float32)

    made = Observables(
        norms={name: numbers(n) * 10 for name in ("prenorm", "postnorm", "logits")},
        attention=numbers(layers, heads, 3, n),
        groups=("text", "state", "action"),
        patch=rng.integers(-1, n_2d, n_3d).astype(np.int32) if n_3d else None,
        nearest_patch=rng.integers(0, n_2d, n_3d).astype(np.int32) if n_3d else None,
        attention_action=numbers(passes - 1, layers, n),
        patch_later=rng.integers(-1, n_2d, (passes - 1, n_3d)).astype(np.int32),
    )
    return dataclasses.replace(made, **changes)


FIRST = st.builds(
    Reduction,
    feature=st.sampled_from(["prenorm", "postnorm", "logits"]),
    correspondence=st.sampled_from(["projection", "nearest"]),
    components=st.sampled_from(["layer_head", "head", "query", "layer"]),
    groups=st.lists(st.sampled_from(["text", "state", "action"]), min_size=1, unique=True).map(tuple),
    layers=st.sampled_from(["last_quarter", "all", (0, 3), (4,)]),
)
LATER = st.builds(
    Reduction,
    correspondence=st.sampled_from(["projection", "index"]),
    components=st.sampled_from(["query", "layer"]),
    groups=st.just(("action",)),
    layers=st.sampled_from(["last_quarter", "all", (1, 2)]),
    passes=st.sampled_from(["mean", "all"]),
)


def check(seen, reduction, shape):
    scores = reduce(seen, reduction, shape)
    expected = oracle.reduce(seen, reduction, shape.n_2d, shape.n_3d)
    for index, field in enumerate(dataclasses.fields(Scores)):
        values = getattr(scores, field.name)
        assert values.dtype == (np.int32 if field.name == "points" else np.float32)
        np.testing.assert_allclose(values, [row[index] for row in expected], rtol=1e-6, atol=1e-6)


@settings(max_examples=150, deadline=None)
@given(st.one_of(FIRST, LATER), st.integers(0, 2**32 - 1))
def test_equals_the_literal_reduction(reduction, seed):
    shape = Shape(8, 8) if reduction.correspondence == "index" else SHAPE
    changes = {"patch_later": None} if reduction.correspondence == "index" else {}
    check(observables(seed, n_2d=shape.n_2d, **changes), reduction, shape)


def test_every_option_changes_the_scores():
    seen, shape = observables(n_2d=8), Shape(8, 8)
    plain = reduce(seen, Reduction(), shape)
    changes = [
        {"feature": "postnorm"},
        {"feature": "logits"},
        {"correspondence": "index"},
        {"correspondence": "nearest"},
        {"components": "head"},
        {"components": "query"},
        {"components": "layer"},
        {"groups": ("state",)},
        {"layers": "all"},
        {"layers": (0,)},
    ]
    base = Reduction(groups=("action",), components="layer")
    results = [reduce(seen, dataclasses.replace(Reduction(), **change), shape) for change in changes]
    results += [reduce(seen, dataclasses.replace(base, passes=p), shape) for p in ("first", "mean", "all")]
    flat = [np.concatenate([getattr(s, f.name) for f in dataclasses.fields(s)]).tolist() for s in [plain, *results]]
    assert len({tuple(row) for row in flat}) == len(flat)


def test_a_policy_without_points_has_zero_3d_scores():
    seen = observables(n_3d=0)
    scores = reduce(seen, Reduction(), Shape(6, 0))
    assert not scores.norm_3d.any()
    assert not scores.attention_3d.any()
    assert not scores.points.any()
    assert scores.attention_2d.all()


def test_orthogonal_part_of_a_multiple_is_zero_and_of_anything_to_zero_is_itself():
    seen = observables()
    attention = seen.attention.copy()
    attention[..., 6:] = 3 * attention[..., :1]
    seen = dataclasses.replace(seen, attention=attention, patch=np.zeros(8, np.int32))
    scores = reduce(seen, Reduction(), SHAPE)
    assert scores.ortho_3d[0] == pytest.approx(0, abs=1e-5)
    attention[..., 0] = 0
    scores = reduce(seen, Reduction(), SHAPE)
    assert scores.ortho_3d[0] == scores.attention_3d[0] > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused_by_name_and_place(bad):
    seen = observables()
    attention = seen.attention.copy()
    attention[4, 0, 0, 9] = bad
    with pytest.raises(TraceError, match=r"observables.attention holds 1 NaN or infinite .* token 9"):
        reduce(dataclasses.replace(seen, attention=attention), Reduction(), SHAPE)
    norms = {"prenorm": np.full(14, bad, np.float32)}
    with pytest.raises(TraceError, match=r"observables.norms\['prenorm'\] holds 14"):
        reduce(dataclasses.replace(seen, norms=norms), Reduction(), SHAPE)


def test_tokens_that_were_not_fed_are_not_read():
    seen = observables()
    attention, norms = seen.attention.copy(), seen.norms["prenorm"].copy()
    kept = np.ones(14, bool)
    kept[[2, 9]] = False
    attention[..., ~kept] = np.nan
    norms[~kept] = np.nan
    pruned = reduce(
        dataclasses.replace(seen, attention=attention, norms={"prenorm": norms}, kept=kept), Reduction(), SHAPE
    )
    whole = reduce(seen, Reduction(), SHAPE)
    untouched = [p for p in range(6) if p not in {2, seen.patch[9 - 6]}]
    for field in dataclasses.fields(Scores):
        np.testing.assert_array_equal(getattr(pruned, field.name)[untouched], getattr(whole, field.name)[untouched])


@pytest.mark.parametrize(
    ("changes", "reduction", "error", "message"),
    [
        ({"norms": {}}, Reduction(), TraceError, "norms of feature 'prenorm' were not recorded"),
        ({"patch": None}, Reduction(), TraceError, "lack the point tokens' patches"),
        ({"nearest_patch": None}, Reduction(correspondence="nearest"), TraceError, "'nearest' needs"),
        ({"groups": ("text", "state", "x")}, Reduction(), ConfigError, "no query group 'action'"),
        ({}, Reduction(layers=(0, 5)), ConfigError, "has layers 0 to 4, not 5"),
        (
            {"attention_action": None},
            Reduction(passes="mean", groups=("action",), components="layer"),
            TraceError,
            "attention of the later passes was not recorded",
        ),
        (
            {"patch_later": None},
            Reduction(passes="mean", groups=("action",), components="layer"),
            TraceError,
            "lack the point tokens' patches",
        ),
        ({"patch": np.full(8, 6, np.int32)}, Reduction(), TraceError, "integers from -1 to 5"),
    ],
)
def test_what_is_missing_is_named(changes, reduction, error, message):
    with pytest.raises(error, match=message):
        reduce(observables(**changes), reduction, SHAPE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature": "norm"}, "feature = 'norm': choose one of prenorm"),
        ({"groups": ()}, "at least one of text"),
        ({"groups": ("text", "text")}, "each once"),
        ({"layers": "first"}, "last_quarter, all, or a list"),
        ({"layers": (-1,)}, "at least one index from 0"),
        ({"passes": "mean"}, r'set groups = \["action"\]'),
        ({"passes": "all", "groups": ("action",), "components": "head"}, 'components = "layer" or "query"'),
    ],
)
def test_bad_reductions_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Reduction(**options)


def test_the_digest_names_the_reduction():
    assert Reduction().digest == Reduction().digest != Reduction(feature="logits").digest
    assert len(Reduction().digest) == 64


def test_damaged_scores_are_refused_by_name_and_place():
    good = {f.name: np.ones(4, np.int32 if f.name == "points" else np.float32) for f in dataclasses.fields(Scores)}
    for bad in (np.nan, -1.0):
        broken = np.array([1, 1, bad, 1], np.float32)
        with pytest.raises(TraceError, match=r"scores.ortho_3d\[2\] is"):
            Scores(**{**good, "ortho_3d": broken})
    with pytest.raises(TraceError, match=r"scores\.norm_3d is float64"):
        Scores(**{**good, "norm_3d": np.ones(4)})
    with pytest.raises(TraceError, match=r"must be int32 of the shape of norm_2d"):
        Scores(**{**good, "points": np.ones(3, np.int32)})


def test_steps_stack_into_an_episode_and_back():
    steps = [reduce(observables(seed), Reduction(), SHAPE) for seed in range(3)]
    episode = Scores.stack(steps)
    assert len(episode) == 3
    for index, step in enumerate(steps):
        for field in dataclasses.fields(Scores):
            np.testing.assert_array_equal(getattr(episode.step(index), field.name), getattr(step, field.name))
