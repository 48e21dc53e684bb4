"""Cells decided together are those decided one by one: digests, tokens and rates, for every kind of configuration."""

import numpy as np
import pytest

from replay import replay_decisions
from replay.accuracy import replay_episode
from replay.summary import rates
from replay.sweep.decided import clustering_of, decide_cells
from replay.sweep.flops import ModelSize, model_size, step_flops
from replay.sweep.inputs import EpisodeInputs
from tests.small import make_config
from tracekit.bench.costs import decoder_cost
from tracekit.config import Configuration, ReuseConfig
from tracekit.errors import TraceError
from tracekit.model import reference
from tracekit.policy import load_policy
from tracekit.pruning import decision_digest


def lagged(refresh=3, **pruner):
    table = make_config("tri_stage", **pruner).to_json()
    table["observe"] = {"mode": "lagged", "feedback": "recorded", "refresh_every": refresh}
    return Configuration.from_table(table, "lagged")


def cut(**pruner):
    table = make_config("tri_stage", "prefix_kv", **pruner).to_json()
    return Configuration.from_table({**table, "reuse": {**table["reuse"], "kv": "drop"}}, "cut")


CONFIGS = (
    make_config("none"),
    make_config("naive", rate=0.3, seed=5),
    make_config("tri_stage"),
    make_config("tri_stage", background_rate=0.5, seed=3),
    make_config("tri_stage", background_rate=0.5, seed=4),
    make_config("tri_stage", "prefix_kv", background_rate=0.4),
    make_config("tri_stage", "encoders", tau_2d=0.3, tau_3d=0.4, background_rate=0.2),
    make_config("tri_stage", clustering="separate"),
    make_config("tri_stage", cluster_order="inverse", cluster_input="smoothed", beta=0.5),
    make_config("tri_stage", stages=["s1"], modalities="2d"),
    make_config("tri_stage", stages=["s2"], modalities="3d", unprojected_points="drop"),
    make_config("tri_stage", stages=["s1", "s2"], unprojected_points="drop"),
    make_config("tri_stage", unprojected_points="random", background_rate=0.5),
    make_config("tri_stage", window="window_mean", k=2, draw="sticky", prune_from=3),
    make_config("tri_stage", draw="stratified", protect="object_2d", robot_empty="keep_2d", ortho="clamp"),
    make_config("tri_stage", budget="soft", rate=0.5),
    make_config("tri_stage", "encoders", budget="hard_topk", rate=0.6),
    make_config("tri_stage", "encoders", budget="hard_topk", rate=0.6, stages=["s1", "s2"]),
    make_config("tri_stage", background_rate=0.4, reduction={"correspondence": "nearest"}),
    make_config("tri_stage", "encoders", budget="hard_topk", rate=0.6, reduction={"correspondence": "nearest"}),
    make_config("tri_stage", reduction={"groups": ["state"], "components": "head"}),
    lagged(),
    lagged(2, background_rate=0.5, unprojected_points="random"),
    lagged(7, stages=["s1", "s2"]),
    cut(background_rate=0.4),
)


@pytest.fixture(scope="module")
def cells(inputs):
    """Rows of all configurations, per episode."""
    return [decide_cells(episode, CONFIGS, None) for episode in inputs]


@pytest.mark.parametrize("place", range(len(CONFIGS)), ids=[f"{c.kind}-{c.digest[:6]}" for c in CONFIGS])
def test_decided_together_or_one_by_one(inputs, cells, small_trace, place):
    alone = replay_decisions(small_trace, CONFIGS[place])
    for episode, rows in zip(inputs, cells, strict=True):
        assert rows[place]["decisions_digest"] == decision_digest(alone[episode.target.episode])


def test_the_order_and_the_company_do_not_matter(inputs, cells):
    backwards = decide_cells(inputs[0], CONFIGS[::-1], None)[::-1]
    assert backwards == cells[0]
    assert [decide_cells(inputs[0], [config], None)[0] for config in CONFIGS] == cells[0]
    many = [CONFIGS[index % len(CONFIGS)] for index in range(1000)]
    assert decide_cells(inputs[1], many, None) == [cells[1][index % len(CONFIGS)] for index in range(1000)]


@pytest.mark.parametrize("place", range(len(CONFIGS)), ids=[f"{c.kind}-{c.digest[:6]}" for c in CONFIGS])
def test_tokens_are_those_of_a_forward_replay(inputs, cells, small_policy, place):
    config, episode = CONFIGS[place], inputs[1]
    found = rates(replay_episode(small_policy, config, episode.episode, int).steps)
    row = cells[1][place]
    for name in ("kept_2d", "kept_3d", "rate_2d", "rate_3d", "effective_rate"):
        # the split pass of a kept prefix rounds otherwise, and may turn a tie
        assert row[name] == pytest.approx(getattr(found, name), abs=0 if config.reuse.kind != "prefix_kv" else 1), name


def test_what_needs_a_forward_pass_is_refused(inputs):
    table = make_config("tri_stage").to_json() | {"observe": {"mode": "lagged"}}
    with pytest.raises(TraceError, match=r"feedback = \"own\".*sweep --forward"):
        decide_cells(inputs[0], [Configuration.from_table(table, "own")], None)
    other = make_config("tri_stage", reduction={"feature": "logits"})
    with pytest.raises(TraceError, match=r"^tri_stage: .*'logits' were not recorded"):
        decide_cells(inputs[0], [other], None)


def test_equal_clusterings_are_known_as_such():
    same = [
        make_config("tri_stage"),
        make_config("tri_stage", tau_2d=0.05, seed=4, beta=0.3, k=3),
        make_config("tri_stage", cluster_order="inverse"),
        make_config("tri_stage", "prefix_kv"),
        make_config("tri_stage", cluster_input="smoothed", stages=["s1", "s2"]),
    ]
    assert len({clustering_of(config) for config in same}) == 1
    others = [
        make_config("tri_stage", clustering="separate"),
        make_config("tri_stage", cluster_input="smoothed"),
        make_config("tri_stage", cluster_input="smoothed", beta=0.3),
        make_config("tri_stage", reduction={"groups": ["text"]}),
        lagged(),
    ]
    assert len({clustering_of(config) for config in (*same, *others)}) == 6
    assert clustering_of(make_config("tri_stage", stages=["s1"])) is None
    assert clustering_of(make_config("naive")) is None


def test_operations_are_those_that_are_counted_elsewhere(inputs):
    config, episode = reference(), inputs[0]
    size = model_size("reference", load_policy("reference").identity.config_digest)
    for rows, held in ((533, 0), (5, 528), (8, 100)):
        assert size.flops(rows, held) == decoder_cost(config, rows, held, 4).flops
    layout = episode.layout
    prefix, whole = layout.prefix_length, layout.length
    tail = layout.span("action").stop - prefix
    visual = len(layout.visual_positions)
    kept = np.array([[visual, 100, 100], [visual, visual, visual]])
    full = [size.flops(count + whole - visual, 0) for count in (visual, 100)]
    assert step_flops(size, layout, kept, ReuseConfig()).tolist() == [full[0] + 2 * full[1], 3 * full[0]]
    assert step_flops(size, layout, kept, ReuseConfig("encoders", "pinned")).tolist() == [
        full[0] + 2 * full[1],
        3 * full[0],
    ]
    short = prefix - visual + 100
    pruned = (
        size.flops(prefix, 0) + size.flops(tail, prefix) + size.flops(short, 0) + 2 * size.flops(tail, short),
        size.flops(prefix, 0) + 3 * size.flops(tail, prefix),
    )
    assert step_flops(size, layout, kept, ReuseConfig("prefix_kv", "pinned")).tolist() == list(pruned)
    once = step_flops(size, layout, kept, ReuseConfig("prefix_kv", "pinned", "drop")).tolist()
    assert once == [pruned[0] - size.flops(short, 0), pruned[1]]


def test_a_policy_of_unknown_size_has_unknown_operations(inputs, cells):
    assert model_size("unheard-of", "") is None
    assert model_size("small", "of another policy") is None
    assert {row["gflops"] for row in cells[0]} == {None}
    (row,) = decide_cells(inputs[0], [CONFIGS[2]], ModelSize(layers=1, hidden=2, weights=10))
    assert row["gflops"] > 0


def test_inputs_are_read_once(inputs, monkeypatch):
    fresh = EpisodeInputs(inputs[0].target, inputs[0].episode)
    decide_cells(fresh, CONFIGS[2:4], None)
    monkeypatch.setattr("replay.source.recorded_scores", None)
    decide_cells(fresh, CONFIGS[4:9], None)
