"""What is timed, in which order, and what it stands for. How long it took is asserted nowhere."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import replay.timing
from replay import Replay, TimingOptions
from replay.timing import VariantTiming, sample_steps, time_variants
from tests.small import make_config
from tracekit.profiling import STAGES


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.integers(1, 12))
def test_weights_sum_to_one_and_stand_for_whole_episodes(lengths, wanted):
    sample = sample_steps(lengths, wanted)
    total = sum(lengths)
    assert sum(step.weight for step in sample) == pytest.approx(1, rel=1e-12)
    assert len({(step.episode, step.step) for step in sample}) == len(sample)
    assert all(0 <= step.step < lengths[step.episode] for step in sample)
    assert (sample[0].episode, sample[0].step) == (0, 0)
    assert all(step.step > 0 for step in sample[1:])
    assert len(sample) <= max(wanted, 2)
    if total > len(lengths):  # first steps stand for the share of all first steps, however few are timed
        assert sample[0].weight == pytest.approx(float(Fraction(len(lengths), total)))


def test_later_steps_are_spread_over_the_episodes():
    sample = sample_steps([10, 10, 10], 4)
    assert [step.episode for step in sample] == [0, 0, 1, 2]
    assert sample_steps([1, 1], 5) == (replay.timing.SampledStep(0, 0, 1.0),)


def test_everything_can_be_sampled():
    sample = sample_steps([3, 2], 100)
    assert [(step.episode, step.step) for step in sample] == [(0, 0), (0, 1), (0, 2), (1, 1)]
    assert [step.weight for step in sample] == pytest.approx([2 / 5, 1 / 5, 1 / 5, 1 / 5])


def test_every_kind_of_step_is_timed_and_stands_for_its_share():
    """Two refreshes, and pruned steps between them."""
    kinds = [["cold", "pruned", "pruned", "pruned", "refresh", "pruned", "pruned"]]
    sample = sample_steps([7], 2, kinds)
    assert [(step.step, step.weight) for step in sample] == [
        (0, pytest.approx(1 / 7)),
        (3, pytest.approx(5 / 7)),
        (4, pytest.approx(1 / 7)),
    ]
    more = sample_steps([7], 5, kinds)
    assert sum(step.weight for step in more) == pytest.approx(1)
    assert [step.weight for step in more if step.step == 4] == [pytest.approx(1 / 7)]
    assert len(sample_steps([7], 50, kinds)) == 7


def test_medians_and_spreads():
    stages = np.zeros((3, len(STAGES)))
    stages[:, STAGES.index("encode")] = [3, 5, 4]
    stages[:, STAGES.index("prefill")] = [1, 1, 7]
    variant = VariantTiming(np.array([10.0, 9.0, 14.0]), stages)
    assert variant.median_ms == 10
    assert variant.spread_ms == 5
    assert variant.stage_ms("encode") == 4
    assert variant.stage_ms("encode", "prefill") == 6  # of the sums 4, 6, 11: the median of the sum
    assert variant.other_ms == pytest.approx(np.median([6, 3, 3]))


@pytest.fixture
def timed(monkeypatch):
    """The order in which steps are timed: (configuration, episode step, memory)."""
    seen = []

    def stub(policy, config, step, uid, _index):
        seen.append((config.name, uid, step.recorded.index, step.memory))
        return float(len(seen)), np.full(len(STAGES), 1.0)

    monkeypatch.setattr(replay.timing, "_time_step", stub)
    return seen


def test_variants_are_interleaved_and_every_one_goes_first(small_trace, timed):
    replaying = Replay(small_trace)
    configs = [make_config("none", name="a"), make_config("naive", name="b"), make_config("tri_stage", name="c")]
    steps = replaying.run(*configs).episodes
    variants = {config.name: (None, config, steps[config.name]) for config in configs}
    advanced = []
    found = time_variants(variants, [70, 71], TimingOptions(steps=3, rounds=4), lambda: advanced.append(1))
    assert len(timed) == len(advanced) == 4 * 3 * 3
    order = [name for name, *_ in timed[::3]]
    assert order == list("abcbcacababc")
    assert [(uid, step) for _, uid, step, _ in timed[:3]] == [(70, 0), (70, 2), (71, 1)]
    tri_stage = [memory for name, uid, step, memory in timed if (name, uid, step) == ("c", 70, 2)]
    assert all(memory is steps["c"][0].steps[2].memory for memory in tri_stage)
    weights = [step.weight for step in sample_steps([4, 2], 3)]
    assert found["a"].wall_ms[0] == pytest.approx(np.dot(weights, [1, 2, 3]))
    assert found["a"].stages_ms.shape == (4, len(STAGES))
    assert found["b"].stages_ms[2].tolist() == pytest.approx([1.0] * len(STAGES))


def test_every_reference_is_timed_in_the_same_run(small_trace, timed):
    replaying = Replay(small_trace, episodes=["close_laptop-3"])
    config = make_config("naive", "prefix_kv")
    row = replaying.run(config, timing=TimingOptions(steps=2, rounds=1)).to_json()["configurations"][0]
    assert len(timed) == 4 * 2  # unpruned as released, with cached encoders, with this reuse; and the configuration
    assert row["speedup"]["total"] == pytest.approx(
        row["speedup"]["encoders"] * row["speedup"]["reuse"] * row["speedup"]["pruning"]
    )
    assert row["step_ms"]["median"] > 0


def test_without_reuse_only_pruning_can_be_faster(small_trace, timed):
    row = (
        Replay(small_trace, episodes=["close_laptop-3"])
        .run(make_config("naive"), timing=TimingOptions(steps=2, rounds=3))
        .to_json()["configurations"][0]
    )
    assert row["speedup"]["encoders"] == row["speedup"]["reuse"] == 1
    assert row["speedup"]["total"] == row["speedup"]["pruning"]


def test_a_timed_replay_finds_the_same_actions_and_has_every_figure(small_trace):
    config = make_config("tri_stage", "prefix_kv")
    plain = Replay(small_trace, episodes=["close_laptop-3"]).run(config).to_json()["configurations"][0]
    result = Replay(small_trace, episodes=["close_laptop-3"]).run(config, timing=TimingOptions(steps=2, rounds=2))
    row = result.to_json()["configurations"][0]
    assert row["actions_digest"] == plain["actions_digest"]
    assert row["decision_ms"] > 0
    assert row["observe_ms"] > 0
    assert set(row["stages_ms"]) == {*STAGES, "other"}
    assert set(row["speedup"]) == {"total", "encoders", "reuse", "pruning"}
    assert set(row["step_ms"]) == {"median", "spread"}
    assert all(value > 0 for value in row["speedup"].values())
