"""The statistics that are printed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recorders.sim.evaluate import Case, unpruned
from recorders.sim.evaluate.episode import EpisodeOutcome
from recorders.sim.evaluate.results import Evaluation
from recorders.sim.evaluate.statistics import paired_difference, wilson_interval
from tracekit.errors import ConfigError
from tracekit.policy import PolicyIdentity


def test_wilson_interval_of_known_rates():
    # z = 1.959964: centre (p + z²/2n)/(1 + z²/n), reach z/(1 + z²/n)·√(p(1 - p)/n + z²/4n²)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(15, 20) == pytest.approx((0.5313, 0.8881), abs=1e-4)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_a_paired_difference_is_antisymmetric_and_inside_its_interval(pairs):
    here, there = zip(*pairs, strict=True)
    forward, backward = paired_difference(here, there), paired_difference(there, here)
    assert forward.rate == pytest.approx(np.mean(here) - np.mean(there))
    assert forward.interval == pytest.approx((-backward.interval[1], -backward.interval[0]))
    low, high = forward.interval
    shrunk = forward.rate * len(pairs) / (len(pairs) + 2)
    assert -1 <= low <= shrunk <= high <= 1
    assert high - low > 0


def test_pairing_narrows_the_interval():
    here = [True] * 30 + [False] * 20
    agreeing = paired_difference(here, [True] * 25 + [False] * 25)
    crossing = paired_difference(here, [False] * 25 + [True] * 25)
    assert agreeing.rate == crossing.rate
    assert np.ptp(agreeing.interval) < np.ptp(crossing.interval)


def test_episodes_that_do_not_pair_are_refused():
    with pytest.raises(ConfigError, match="do not pair"):
        paired_difference([True], [True, False])


def test_paired_interval_of_known_counts():
    # Agresti and Min: (b - c)/(n + 2) and z * sqrt(b + c + 1 - (b - c)^2/(n + 2))/(n + 2), z = 1.959964
    found = paired_difference([True] * 5 + [False] * 45, [False] * 50)
    assert (found.gained, found.lost, found.rate) == (5, 0, 0.1)
    assert found.interval == pytest.approx((0.0076, 0.1847), abs=1e-4)


def test_differences_are_paired_within_each_task():
    """What one task gains is not hidden by what another loses."""

    def episodes(name, won):
        row = Case(name, unpruned(), "policy")
        return [
            (row, task, seed, EpisodeOutcome(seed in seeds, 1, (1.0,), 0.0, 0.0))
            for seed in (2, 0, 1)
            for task, seeds in won.items()
        ]

    identity = PolicyIdentity("policy", "c", "w", 1, trained=True)
    first, second = {"a": {0, 1}, "b": {2}}, {"a": set(), "b": {0, 1}}
    result = Evaluation.of([*episodes("first", first), *episodes("second", second)], {"policy": identity})
    here = result.cases[1]
    assert (here.paired.gained, here.paired.lost) == (2, 3)
    assert {task: (one.gained, one.lost) for task, one in here.paired_by_task.items()} == {"a": (0, 2), "b": (2, 1)}
    assert here.paired_by_task["a"] == paired_difference([False, False, False], [True, True, False])
    assert result.to_json()["configurations"][1]["by_task"]["a"]["paired"]["lost"] == 2
    assert [*result.task_table().columns[4].cells][:2] == ["", ""]
    assert [*result.task_table().columns[4].cells][2].startswith("-67 (")
