import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import baselines as oracle
from tests.tracekit.pruning.oracle_tests import oracle_tests
from tracekit.errors import ConfigError, TraceError
from tracekit.pruning import DecisionKey, Observables, Shape, pruner
from tracekit.pruning.canny import edge_patches
from tracekit.pruning.diversity import most_diverse, similarities
from tracekit.pruning.fastv import FastVConfig
from tracekit.pruning.sp_vla import SpVlaConfig
from tracekit.pruning.vla_pruner import VlaPrunerConfig, VlaPrunerState

QUERIES = ["last_row", "action", "text"]
RATES = st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.9, 0.99])
SEEDS = st.integers(0, 2**32 - 1)


def observables(seed=0, n_2d=256, n_3d=256, layers=5, heads=3, passes=3, width=6, coarse=True, **changes):
    """Random observables; `coarse` scores have many ties."""
    rng = np.random.default_rng(seed)
    n = n_2d + n_3d

    def numbers(*shape):
        values = rng.integers(0, 6, shape) / 4 if coarse else rng.random(shape)
        return values.astype(np.float32)

    side = 32
    made = Observables(
        norms={},
        attention=numbers(layers, heads, 3, n),
        groups=("text", "state", "action"),
        patch=rng.integers(-1, n_2d, n_3d).astype(np.int32),
        attention_action=numbers(passes - 1, layers, n),
        last_row=numbers(layers, n),
        mean_all_rows=numbers(layers, n),
        embeddings=rng.normal(size=(n, width)).astype(np.float32),
        centres=rng.integers(0, 3, (n_3d, 3)).astype(np.float32),
        images=(rng.random((1, side, side, 1)) < 0.02).repeat(3, 3).astype(np.uint8) * 255,
        displacement_m=0.08,
    )
    return dataclasses.replace(made, **changes)


def kept(decision):
    points = set() if decision.keep_3d_tokens is None else set(np.flatnonzero(decision.keep_3d_tokens).tolist())
    return set(np.flatnonzero(decision.keep_2d).tolist()), points


def decide(kind, config, seen, shape, state=None, step=2):
    method = pruner(kind)
    state = method.initial_state(config, shape) if state is None else state
    return method.decide(seen, state, config, DecisionKey(0, 1, step), shape)


@oracle_tests(60, 2000, RATES, SEEDS, st.sampled_from([0, 1, 7]), st.integers(1, 9), st.sampled_from(QUERIES))
def check_fastv(rate, seed, n_3d, n_2d, query):
    seen, config = observables(seed, n_2d, n_3d), FastVConfig(rate=rate, query=query)
    if query == "last_row":
        scores = seen.last_row[1].astype(float)
    else:
        heads = seen.attention[1, :, seen.groups.index(query)].astype(float)
        scores = (heads[0] + heads[1] + heads[2]) / 3
    decision, _ = decide("fastv", config, seen, Shape(n_2d, n_3d))
    assert kept(decision) == oracle.fastv(scores.tolist(), n_2d, rate)


test_fastv_equals_the_oracle, test_fastv_equals_the_oracle_on_thousands_of_inputs = check_fastv


def test_fastv_inside_the_network_decides_behind_its_layer_and_as_offline():
    seen, config, shape = observables(3), FastVConfig(layer=3), Shape(256, 256)
    method, key = pruner("fastv"), DecisionKey(0, 1, 2)
    for layer in range(5):
        so_far = dataclasses.replace(seen, last_row=seen.last_row[: layer + 1])
        decision = method.decide_at(layer, so_far, None, config, key, shape)
        assert (decision is None) == (layer != 3)
        if decision is not None:
            assert kept(decision) == kept(decide("fastv", config, seen, shape)[0])


@oracle_tests(40, 2000, RATES, SEEDS, st.sampled_from([0, 1, 40, 256]), st.booleans())
def check_sp_vla_by_rate(rate, seed, n_3d, coarse):
    seen = observables(seed, n_3d=n_3d, coarse=coarse)
    decision, _ = decide("sp_vla", SpVlaConfig(rate=rate), seen, Shape(256, n_3d))
    edges = set(np.flatnonzero(edge_patches(seen.images[0])).tolist())
    assert kept(decision) == oracle.sp_vla_fixed(seen.mean_all_rows[-1].tolist(), edges, 256, rate)


test_sp_vla_by_rate_equals_the_oracle, test_sp_vla_by_rate_equals_the_oracle_on_thousands = check_sp_vla_by_rate


def test_sp_vla_meets_the_total_rate_until_edges_saturate():
    seen = observables(1, coarse=False)
    edges = int(edge_patches(seen.images[0]).sum())
    for rate in (0.5, 0.6, 0.7, 0.8, 0.99):
        images, points = map(len, kept(decide("sp_vla", SpVlaConfig(rate=rate), seen, Shape(256, 256))[0]))
        budget = round(512 * (1 - rate))
        assert budget - 1 <= images + points <= budget or (edges + 1 >= budget and points == 1)
        assert images >= points


@oracle_tests(
    60, 2000, st.floats(0, 0.15), SEEDS, st.sampled_from([0, 1, 40]), st.floats(0, 0.9), st.floats(0, 1), st.booleans()
)
def check_sp_vla_by_velocity(metres, seed, n_3d, v_threshold, z_min, coarse):
    seen = observables(seed, n_3d=n_3d, coarse=coarse, displacement_m=metres)
    config = SpVlaConfig(budget="velocity", v_threshold=v_threshold, z_min=z_min)
    decision, _ = decide("sp_vla", config, seen, Shape(256, n_3d))
    edges = set(np.flatnonzero(edge_patches(seen.images[0])).tolist())
    speed = min(metres * 1000 / 100, 1)
    scores = seen.mean_all_rows[-1].tolist()
    expected = oracle.sp_vla_velocity(scores, edges, 256, speed, v_threshold, z_min)
    assert decision.pruned == (expected is not None)
    if expected is not None:
        assert kept(decision) == expected


test_sp_vla_by_velocity_equals_the_oracle, test_sp_vla_by_velocity_equals_on_thousands = check_sp_vla_by_velocity


def test_sp_vla_leaves_the_first_step_alone():
    seen, shape = observables(displacement_m=None), Shape(256, 256)
    for config in (SpVlaConfig(), SpVlaConfig(budget="velocity")):
        decision, _ = decide("sp_vla", config, seen, shape, step=1)
        assert not decision.pruned
        assert all(decision.keep_2d)
    with pytest.raises(TraceError, match="needs the executed actions"):
        decide("sp_vla", SpVlaConfig(budget="velocity"), seen, shape, step=2)


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3, 64]))
def test_diversity_is_greedy_max_min_cosine_distance(seed, n, count, width):
    rows = np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)
    candidates = np.flatnonzero(np.random.default_rng(seed + 1).random(n) < 0.8)
    if width == 1:
        rows = np.abs(rows)  # every distance is 0: the lowest indices
    found = most_diverse(rows, candidates, count).tolist()
    assert set(found) == oracle.diverse(rows.astype(float).tolist(), candidates.tolist(), count)


def test_similarities_are_whole_numbers_and_the_order_of_adding_cannot_matter():
    rows = np.random.default_rng(0).normal(size=(40, 4096)).astype(np.float32)
    found = similarities(rows)
    order = np.random.default_rng(1).permutation(4096)
    np.testing.assert_array_equal(found, similarities(rows[:, order]))
    np.testing.assert_array_equal(found, np.rint(found))
    unit = rows.astype(float) / np.linalg.norm(rows.astype(float), axis=1)[:, None]
    np.testing.assert_allclose(found / 2.0**50, unit @ unit.T, atol=1e-6)
    assert not similarities(np.zeros((2, 3), np.float32)).any()


@oracle_tests(
    60,
    2000,
    SEEDS,
    st.builds(
        VlaPrunerConfig,
        rate=st.sampled_from([0.3, 0.5, 0.8]),
        variant=st.sampled_from(["paper", "released"]),
        warmup=st.sampled_from(["steps", "denoise", "none"]),
        layer=st.integers(1, 5),
        action_layer=st.sampled_from([None, 0, 4]),
        window=st.integers(1, 4),
        decay=st.sampled_from([0.0, 0.8, 1.0]),
    ),
)
def check_vla_pruner(seed, config):
    n_2d, n_3d = 9, 8
    shape, state, history = Shape(n_2d, n_3d), None, []
    for step in range(1, 6):
        seen = observables(seed + step, n_2d, n_3d)
        decision, state = decide("vla_pruner", config, seen, shape, state, step)
        now = {"patch": seen.patch.tolist(), "centres": seen.centres.tolist()}
        semantic = seen.mean_all_rows[config.layer - 1].tolist()
        expected = oracle.vla_pruner(semantic, history, now, n_2d, config, seen.embeddings.astype(float).tolist())
        assert decision.pruned == (expected is not None)
        if expected is not None:
            assert list(kept(decision)) == expected
        layer = 15 * 5 // 32 if config.action_layer is None else config.action_layer
        heads = seen.attention[layer, :, 2].astype(float)
        passes = [(heads[0] + heads[1] + heads[2]) / 3, *seen.attention_action[:, layer].astype(float)]
        if config.warmup != "denoise":
            passes = [(passes[0] + passes[1] + passes[2]) / 3]
        history += [{"image": p[:n_2d].tolist(), "point": p[n_2d:].tolist(), **now} for p in passes]
        history = history[-config.window :]


test_vla_pruner_equals_the_oracle, test_vla_pruner_equals_the_oracle_on_thousands_of_inputs = check_vla_pruner


@pytest.mark.parametrize(("layers", "layer"), [(32, 15), (8, 3), (4, 1), (1, 0)])
def test_vla_pruner_reads_actions_in_layer_15_of_32_in_proportion(layers, layer):
    seen = observables(1, 9, 8, layers=layers, heads=1, attention_action=None)
    _, state = decide("vla_pruner", VlaPrunerConfig(layer=1), seen, Shape(9, 8))
    np.testing.assert_array_equal(state.image[0], seen.attention[layer, 0, 2, :9])


def test_vla_pruner_variants_weigh_the_history_in_opposite_order():
    shape = Shape(9, 8)
    decisions = {}
    for variant in ("paper", "released"):
        config, state = VlaPrunerConfig(rate=0.6, variant=variant, decay=0.1), None
        for step in range(1, 5):
            decision, state = decide("vla_pruner", config, observables(step, 9, 8), shape, state, step)
        decisions[variant] = kept(decision)
    assert decisions["paper"] != decisions["released"]


def test_vla_pruner_state_survives_storage_and_the_seam_inside_the_network():
    shape, config, method = Shape(9, 8), VlaPrunerConfig(warmup="denoise"), pruner("vla_pruner")
    first, second = observables(1, 9, 8), observables(2, 9, 8)
    _, state = decide("vla_pruner", config, first, shape)
    stored = VlaPrunerState.from_arrays(state.to_arrays())
    offline, after = decide("vla_pruner", config, second, shape, stored)
    key = DecisionKey(0, 1, 2)
    inside = [method.decide_at(layer, second, state, config, key, shape) for layer in range(5)]
    assert [decision is not None for decision in inside] == [False, False, False, True, False]
    assert kept(inside[3]) == kept(offline)
    remembered = method.remember(second, state, config, shape)
    for name, array in after.to_arrays().items():
        np.testing.assert_array_equal(array, remembered.to_arrays()[name])


@pytest.mark.parametrize(
    ("kind", "config", "changes", "error", "message"),
    [
        ("fastv", FastVConfig(), {"last_row": None}, TraceError, "'fastv' needs observables 'last_row'"),
        ("fastv", FastVConfig(layer=6), {}, ConfigError, "needs the attention of layer 5, but the policy has 5"),
        ("fastv", FastVConfig(query="text"), {"groups": ("a", "b", "c")}, ConfigError, "no query group 'text'"),
        ("sp_vla", SpVlaConfig(), {"images": None}, TraceError, "needs observables 'images'"),
        ("sp_vla", SpVlaConfig(), {"images": np.zeros((2, 32, 32, 3), np.uint8)}, TraceError, "2 images for 256"),
        ("sp_vla", SpVlaConfig(), {"mean_all_rows": None}, TraceError, "'mean_all_rows'"),
        ("vla_pruner", VlaPrunerConfig(warmup="none"), {"embeddings": None}, TraceError, "'embeddings'"),
        ("vla_pruner", VlaPrunerConfig(action_layer=5), {}, ConfigError, "pruner.action_layer: needs"),
        ("vla_pruner", VlaPrunerConfig(), {"centres": None}, TraceError, "needs the centres of unprojected"),
        ("fastv", FastVConfig(), {"last_row": np.full((5, 512), np.nan, np.float32)}, TraceError, "NaN or infinite"),
    ],
)
def test_what_is_missing_is_named(kind, config, changes, error, message):
    with pytest.raises(error, match=message):
        decide(kind, config, observables(**changes), Shape(256, 256))


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (FastVConfig, {"rate": 1.0}, "pruner.rate"),
        (FastVConfig, {"layer": 0}, "pruner.layer"),
        (FastVConfig, {"query": "all"}, "pruner.query"),
        (SpVlaConfig, {"v_threshold": 0.6}, "pruner.v_threshold = 0.6: is read by budget = 'velocity' only"),
        (SpVlaConfig, {"budget": "velocity", "rate": 0.6}, "pruner.rate = 0.6: is read by budget = 'fixed_r' only"),
        (SpVlaConfig, {"v_threshold": 1.0}, "pruner.v_threshold"),
        (SpVlaConfig, {"z_min": 1.5}, "pruner.z_min"),
        (SpVlaConfig, {"full_speed_mm": 0.0}, "pruner.full_speed_mm"),
        (SpVlaConfig, {"canny_low": 300}, "pruner.canny_low"),
        (VlaPrunerConfig, {"window": 0}, "pruner.window"),
        (VlaPrunerConfig, {"decay": 2.0}, "pruner.decay"),
        (VlaPrunerConfig, {"variant": "fork"}, "pruner.variant"),
    ],
)
def test_bad_options_are_refused_by_name(config, options, message):
    with pytest.raises(ConfigError, match=message):
        config(**options)


@pytest.mark.parametrize("kind", ["fastv", "vla_pruner", "sp_vla"])
def test_published_rates_and_a_policy_without_points(kind):
    config = {"fastv": FastVConfig, "sp_vla": SpVlaConfig, "vla_pruner": VlaPrunerConfig}[kind]
    options = {"warmup": "none"} if kind == "vla_pruner" else {}
    for rate, count in ((0.6, 102), (0.7, 77), (0.8, 51)):
        images, points = kept(decide(kind, config(rate=rate, **options), observables(coarse=False), Shape(256, 256))[0])
        if kind != "sp_vla":
            assert (len(images), len(points)) == (count, count)
    seen = dataclasses.replace(observables(n_3d=0, coarse=False), patch=None, centres=None)
    decision, _ = decide(kind, config(**options), seen, Shape(256, 0))
    assert decision.keep_3d_tokens is None
    assert 0 < decision.keep_2d.sum() < 256
