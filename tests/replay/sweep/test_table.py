"""Pareto fronts, best configurations and what is written back."""

import tomllib

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.sweep import best, configuration_toml, front, parse_constraint, per_configuration
from tests.small import make_config
from tracekit.config import load_config, preset_names
from tracekit.errors import ConfigError

SUMMARY = pl.DataFrame(
    {
        "index": [0, 1, 2, 3],
        "name": ["a", "b", "c", "d"],
        "effective_rate": [0.2, 0.5, 0.6, 0.7],
        "unclipped_relative": [0.3, 0.1, 0.1, None],
    }
)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_the_front_is_what_no_other_beats(points):
    costs = np.array(points, np.float64).reshape(-1, 2)

    def beaten(row):
        return any((other <= row).all() and (other < row).any() for other in costs)

    assert front(costs).tolist() == [not beaten(row) for row in costs]


def test_unknown_costs_are_not_on_the_front():
    assert front(np.array([[1.0, np.nan], [2.0, 3.0], [np.nan, 1.0]])).tolist() == [False, True, False]


def test_the_best_is_the_first_of_the_smallest_that_meet_the_constraints():
    assert best(SUMMARY, "unclipped_relative", []) == 1
    assert best(SUMMARY, "unclipped_relative", [parse_constraint("effective_rate > 0.5")]) == 2
    assert best(SUMMARY, "unclipped_relative", [parse_constraint("effective_rate<=0.2")]) == 0
    assert best(SUMMARY, "effective_rate", [], largest=True) == 3
    assert best(SUMMARY, "effective_rate", [parse_constraint("effective_rate >= 0.8")]) is None
    with pytest.raises(ConfigError, match=r"'effective_rat' is no column.*did you mean 'effective_rate'"):
        best(SUMMARY, "effective_rat", [])
    with pytest.raises(ConfigError, match="'name' is no column"):
        best(SUMMARY, "name", [])


@pytest.mark.parametrize("text", ["effective_rate = 0.5", "effective_rate", ">= 0.5", "a >= b", "a >= 1e", "a >= 1 2"])
def test_a_constraint_is_a_column_a_comparison_and_a_number(text):
    with pytest.raises(ConfigError, match="give a column"):
        parse_constraint(text)


def test_means_over_episodes_are_means_over_steps():
    table = pl.DataFrame(
        {
            "index": [0, 0, 1, 1],
            "configuration": ["x", "x", "y", "y"],
            "name": ["a", "a", "b", "b"],
            "kind": ["none"] * 4,
            "method": ["m", "m", "n", "n"],
            "steps": [3, 1, 3, 1],
            "effective_rate": [0.0, 0.4, 0.5, 0.5],
            "gripper_flips": [1, 2, 0, 0],
            "gflops": [1.0, 2.0, None, 3.0],
        }
    )
    found = per_configuration(table)
    assert found["effective_rate"].to_list() == pytest.approx([0.1, 0.5])
    assert found["steps"].to_list() == [4, 4]
    assert found["gripper_flips"].to_list() == [3, 0]
    assert "gflops" not in found.columns  # not known of every cell


@pytest.mark.parametrize("name", preset_names())
def test_a_configuration_comes_back_from_its_toml(name, tmp_path):
    config = load_config(name)
    file = tmp_path / "best.toml"
    file.write_text(configuration_toml(config.to_json(), "one\ntwo"), "utf-8")
    assert load_config(file) == config
    assert file.read_text().startswith("# one\n# two\n")


def test_odd_names_come_back_too():
    config = make_config("naive", name='a "b" \\ c é → d')
    assert tomllib.loads(configuration_toml(config.to_json(), "x"))["name"] == config.name
