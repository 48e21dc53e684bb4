"""Ranks in the open loop and in the closed one: τ-b by its definition, paired seeds, and what cannot be compared."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from replay.sweep import method_digest
from reports import rank
from reports.rank import _kendall
from tests.small import make_config
from tracekit.errors import TraceError

CONFIGS = [make_config("naive", rate=rate, name=f"n{index}") for index, rate in enumerate((0.1, 0.3, 0.5, 0.7))]
TASKS = ("close_box", "close_fridge")


def write(folder, deviations, wins, seeds=20, **about):
    """A sweep's table and an evaluation: per configuration its deviation, and how many of the seeds it wins."""
    rows = [
        {
            "name": config.name,
            "method": method_digest(config.to_json()),
            "task": task,
            "level": about.get("level", "forward"),
            "steps": 3 + place,
            "unclipped_relative": deviation * (1 + place),
            "kept_2d": 1.0,
        }
        for config, deviation in zip(CONFIGS, deviations, strict=False)
        for place, task in enumerate(TASKS)
    ]
    pl.DataFrame(rows).write_parquet(folder / "sweep.parquet")
    cases = [
        {
            "name": f"closed {config.name}",
            "configuration": {**config.to_json(), "execution": {"threads": 7}},
            "wrong_instruction": False,
            "by_seed": {task: {str(seed): seed < won for seed in range(seeds)} for task in TASKS},
        }
        for config, won in zip(CONFIGS, wins, strict=False)
    ]
    cases.append({**cases[0], "name": "told wrong", "wrong_instruction": True})
    drop = {**cases[0]["configuration"], "pruner": {"kind": "drop"}}
    for name in ("blind", "no_image"):
        cases.append({**cases[-2], "name": name, "configuration": drop, "wrong_instruction": False})
    (folder / "evaluation.json").write_text(json.dumps({"configurations": cases}))
    return folder / "sweep.parquet", folder / "evaluation.json"


def literal_tau_b(x, y):
    """Kendall (1945): (P - Q) / √((P + Q + X₀)(P + Q + Y₀)) over all pairs."""
    p = q = x0 = y0 = 0
    for (a, b), (c, d) in itertools.combinations(zip(x, y, strict=True), 2):
        sign = np.sign(a - c) * np.sign(b - d)
        p, q = p + (sign > 0), q + (sign < 0)
        x0 += a == c and b != d
        y0 += b == d and a != c
    return (p - q) / math.sqrt((p + q + x0) * (p + q + y0))


def test_tau_is_kendall_s_b():
    random = np.random.default_rng(0)
    for _ in range(50):
        deviation, success = random.integers(0, 5, 8).astype(float), random.integers(0, 4, 8) / 4
        if np.ptp(deviation) and np.ptp(success):
            assert _kendall(deviation, success) == pytest.approx(literal_tau_b(-deviation, success))


def test_a_perfect_and_a_reversed_order(tmp_path):
    same = rank(*write(tmp_path, (0.1, 0.2, 0.3, 0.4), (19, 15, 10, 2)), resamples=200)
    assert same.overall.tau_b == pytest.approx(1)
    assert same.overall.interval[1] == pytest.approx(1)
    assert [row.name for row in same.configurations] == [f"closed n{index}" for index in range(4)]
    assert [(row.rank_offline, row.rank_closed) for row in same.configurations] == [(i, i) for i in (1, 2, 3, 4)]
    assert set(same.by_task) == set(TASKS)
    assert same.seeds == 20
    reversed_ = rank(*write(tmp_path, (0.4, 0.3, 0.2, 0.1), (19, 15, 10, 2)), resamples=200)
    assert reversed_.overall.tau_b == pytest.approx(-1)


def test_deviations_are_means_over_steps(tmp_path):
    found = rank(*write(tmp_path, (0.1, 0.2, 0.3, 0.4), (19, 15, 10, 2)), resamples=10)
    assert found.configurations[0].deviation == pytest.approx((0.1 * 3 + 0.2 * 4) / 7)
    assert found.configurations[0].success_rate == pytest.approx(19 / 20)


def test_seeds_are_resampled_together(tmp_path):
    """Wins are nested: whatever seeds are drawn, a configuration that won more wins as many or more."""
    found = rank(*write(tmp_path, (0.1, 0.2, 0.3, 0.4), (12, 11, 10, 9)), resamples=300)
    assert found.overall.interval[0] > 0.3
    again = rank(*write(tmp_path, (0.1, 0.2, 0.3, 0.4), (12, 11, 10, 9)), resamples=300)
    assert again == found


def test_equal_success_has_no_tau(tmp_path):
    found = rank(*write(tmp_path, (0.1, 0.2, 0.3, 0.4), (20, 20, 20, 20)), resamples=20)
    assert (found.overall.tau_b, found.overall.interval, found.overall.undefined) == (None, None, 20)
    json.dumps(found.to_json(), allow_nan=False)


def test_what_is_in_one_file_only_is_named(tmp_path):
    found = rank(*write(tmp_path, (0.1, 0.2, 0.3, 0.4), (19, 15, 10)), resamples=10)
    assert len(found.configurations) == 3
    assert found.left_out == ("n3",)


def test_what_cannot_be_ranked_is_refused(tmp_path):
    sweep, evaluation = write(tmp_path, (0.1, 0.2, 0.3, 0.4), (19, 15))
    with pytest.raises(TraceError, match="have 2 configurations in common"):
        rank(sweep, evaluation)
    with pytest.raises(TraceError, match="--by deviation: no such column"):
        rank(sweep, evaluation, column="deviation")
    with pytest.raises(TraceError, match="no Parquet table"):
        rank(evaluation, evaluation)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(TraceError, match="not an evaluation"):
        rank(sweep, tmp_path / "other.json")
    with pytest.raises(TraceError, match="cannot be read"):
        rank(sweep, tmp_path / "nowhere.json")
    sweep, evaluation = write(tmp_path, (0.1, math.nan, 0.3), (19, 15, 3))
    with pytest.raises(TraceError, match="unclipped_relative of n1 is no finite number"):
        rank(sweep, evaluation)
    sweep, evaluation = write(tmp_path, (0.1, 0.2, 0.3), (19, 15, 3), level="decisions")
    with pytest.raises(TraceError, match="sweep again with --forward"):
        rank(sweep, evaluation)
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(TraceError, match="not the table of a sweep"):
        rank(tmp_path / "other.parquet", evaluation)


def test_what_is_committed_is_what_its_files_say():
    folder = Path(__file__).parents[2] / "docs" / "measured" / "rank"
    found = rank(folder / "sweep.parquet", folder / "evaluation.json").to_json()
    kept = json.loads((folder / "ranking.json").read_text())
    assert found["tau_b"] == pytest.approx(kept["tau_b"])
    assert found["interval"] == pytest.approx(kept["interval"])
    assert found["seeds"] == 50
    assert len(found["tasks"]) == 2
    assert len(found["configurations"]) >= 12
    page = (folder.parents[1] / "sweep.md").read_text()
    for row in found["configurations"]:
        assert f"| {row['name']} | {row['deviation']:.3f} | {100 * row['success_rate']:.0f} % |" in page
