"""The comparison as a table for the terminal."""

import io
import re

import pytest
from rich.console import Console

from replay import Replay, TimingOptions
from reports import replay_table
from tests.small import make_config
from tracekit import keys
from tracekit.store import copy_trace


def text_of(result):
    console = Console(width=150, file=io.StringIO())
    console.print(replay_table(result))
    return console.file.getvalue()


@pytest.fixture(scope="module")
def timed(small_trace):
    configs = (make_config(), make_config("naive"))
    return Replay(small_trace, episodes=["close_laptop-3"]).run(*configs, timing=TimingOptions(steps=2, rounds=2))


def cells_of(text, name):
    """The cells of the rows called `name`, without those that are empty."""
    rows = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    return [row[1:] for row in rows if row[0] == name]


def test_every_table_says_that_it_is_open_loop(timed):
    titles = [line for line in text_of(timed).splitlines() if "2 recorded steps" in line]
    assert len(titles) == 2
    assert all("Open-loop" in title for title in titles)


def test_rows_show_the_figures_of_the_object(timed):
    row = {row["name"]: row for row in timed.to_json()["configurations"]}["naive"]
    cost, actions = cells_of(text_of(timed), "naive")
    assert cost[:3] == ["128 / 128", "50.0 / 50.0", "50.0"]
    assert f"{row['step_ms']['median']:.0f} ± {row['step_ms']['spread'] / 2:.0f}" in cost
    assert f"{row['speedup']['total']:.2f} ×" in cost
    assert cost[-1] == f"= 1.00 × 1.00 × {row['speedup']['pruning']:.2f}"
    assert actions[0] == f"{row['deviation']['translation_mm']:.1f}"
    assert f"{row['deviation']['unclipped_relative']:.4f}" in actions
    assert "Bitwise equal to the recorded actions: none." in text_of(timed)


def test_what_is_not_known_is_a_dash(small_trace, tmp_path):
    copy_trace(small_trace, tmp_path / "bare", drop=lambda key: key == keys.ACTION_SAMPLES)
    text = text_of(Replay(tmp_path / "bare", episodes=["close_laptop-3"]).run(make_config("naive")))
    cost, actions = cells_of(text, "naive")
    assert cost[3:] == ["–"] * 3
    assert actions == ["–"] * 6
    assert "Bitwise" not in text
    assert "nan" not in text.lower()


def test_a_mismatch_of_the_encoders_is_said(small_trace, tmp_path):
    def touch(_episode, key, array):
        return array + 1e-3 if key == keys.STATE else array

    copy_trace(small_trace, tmp_path / "touched", edit=touch)
    text = text_of(Replay(tmp_path / "touched", episodes=["close_laptop-3"]).run(make_config()))
    assert "encoder outputs differ" in text
    assert "Bitwise" not in text
