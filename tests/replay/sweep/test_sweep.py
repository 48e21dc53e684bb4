"""A whole sweep: its table, what is computed and what is not, stopping and going on, several processes."""

import io
import json
import multiprocessing
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console

import replay.sweep.worker
from replay import replay_decisions
from replay.sources import _sources
from replay.sweep import Constraint, sweep
from replay.sweep.storage import SweepFolder
from reports import sweep_table
from tracekit.config import load_config
from tracekit.errors import ConfigError, TraceError
from tracekit.pruning import decision_digest
from tracekit.store import Trace, copy_trace

ROOT = Path(__file__).parents[3]
AXES = {"pruner": {"background_rate": [0.2, 0.5, 0.9], "seed": [0, 1], "cluster_order": ["attention", "inverse"]}}
TABLE = """
name = "killed"
kind = "cartesian"
[axes]
pruner.beta = { low = 0.5, high = 0.9, count = 50 }
pruner.background_rate = { low = 0.1, high = 0.9, count = 24 }
"""


def test_the_table_has_every_cell_in_order(swept, small_trace):
    found, table = swept
    assert table["index"].to_list() == [index for index in range(12) for _ in range(2)]
    assert table["episode"].to_list() == ["close_box-7", "close_laptop-3"] * 12
    assert table["name"][0] == "background_rate=0.2 seed=0 cluster_order=attention"
    assert table["pruner.background_rate"].to_list()[::8] == [0.2, 0.5, 0.9]
    assert table["pruner.cluster_order"].to_list()[:4] == ["attention", "attention", "inverse", "inverse"]
    assert set(table["open_loop"]) == {True}
    assert set(table["trace"]) == {"trace.zarr"}
    assert table["steps"].to_list() == [4, 2] * 12
    for row in table.iter_rows(named=True):
        decisions = replay_decisions(small_trace, found.grid.configuration(row["index"]), episodes=[row["episode"]])
        assert row["decisions_digest"] == decision_digest(decisions[row["episode"]])
    metadata = json.loads(pl.read_parquet_metadata(found.table)["tracekit"])
    assert metadata["open_loop"] is True
    assert metadata["grid_digest"] == found.grid.digest


def test_what_is_printed(swept):
    found, table = swept
    data = found.to_json()
    assert data.keys() >= {"cells", "steps", "cells_per_second", "distinct_kmeans", "table", "open_loop", "pareto"}
    assert (data["cells"], data["computed"], data["steps"], data["configurations"]) == (24, 24, 72, 12)
    assert data["cells_per_second"] == pytest.approx(24 / data["seconds"])
    assert data["steps_per_second"] == pytest.approx(72 / data["seconds"])
    assert data["distinct_kmeans"] == 6  # one clustering of each of the six recorded steps
    assert data["pareto"]["objectives"] == ["gflops", "kept"]
    assert data["pareto"]["count"] == table.filter("pareto")["index"].n_unique() > 0
    json.dumps(data, allow_nan=False)


def test_the_best_configuration_is_a_file(swept):
    found, _ = swept
    lowest = found.summary.sort("gflops", maintain_order=True).row(0, named=True)
    assert found.best["gflops"] == lowest["gflops"]
    assert load_config(found.best["toml"]).digest == lowest["configuration"] == found.best["configuration"]
    assert "Open-loop" in Path(found.best["toml"]).read_text()


def test_without_a_best_configuration_no_earlier_one_stays(small_trace, grid, tmp_path):
    own = grid(axes={"pruner.k": [3]})
    best = sweep([small_trace], own, tmp_path / "out", minimise="gflops").best
    assert Path(best["toml"]).exists()
    never = Constraint("kept_2d", ">=", 1000)
    assert sweep([small_trace], own, tmp_path / "out", minimise="gflops", where=[never]).best is None
    assert not Path(best["toml"]).exists()


@pytest.fixture
def counted(monkeypatch):
    """Configurations that are decided, call by call."""
    calls = []
    decide = replay.sweep.worker.decide_cells

    def counting(inputs, configs, size):
        calls.extend(config.digest for config in configs)
        return decide(inputs, configs, size)

    monkeypatch.setattr(replay.sweep.worker, "decide_cells", counting)
    return calls


def test_a_finished_cell_is_never_computed_twice(swept, small_trace, grid, counted):
    found, table = swept
    again = sweep([small_trace], grid(axes=AXES), found.table.parent)
    assert counted == []
    assert again.to_json() | {"computed": 24, "seconds": 0, "cells_per_second": 0, "steps_per_second": 0} == (
        found.to_json() | {"seconds": 0, "cells_per_second": 0, "steps_per_second": 0, "best": None}
    )
    assert pl.read_parquet(again.table).equals(table)


def test_another_grid_takes_what_it_shares(small_trace, grid, counted, tmp_path):
    sweep([small_trace], grid(axes={"pruner.k": [3, 5]}), tmp_path / "out", episodes=["close_laptop-3"])
    assert len(counted) == 2
    larger = sweep([small_trace], grid(name="h", axes={"pruner.k": [5, 3, 4]}), tmp_path / "out")
    assert len(counted) == 2 + 4  # k = 4 on both episodes, 3 and 5 on the one that was left out
    whole = sweep([small_trace], grid(name="h", axes={"pruner.k": [5, 3, 4]}), tmp_path / "whole")
    assert pl.read_parquet(larger.table).equals(pl.read_parquet(whole.table))
    assert {path.name for path in (tmp_path / "out").glob("*.parquet")} == {"g.parquet", "h.parquet"}


def test_a_damaged_file_is_computed_again(small_trace, grid, counted, tmp_path):
    first = sweep([small_trace], grid(axes={"pruner.k": [3, 5]}), tmp_path / "out")
    (part,) = (tmp_path / "out" / "cells").iterdir()
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    (plan,) = (tmp_path / "out" / "plans").rglob("*.parquet")
    planned = bytearray(plan.read_bytes())
    planned[28] ^= 1
    plan.write_bytes(planned)
    again = sweep([small_trace], grid(axes={"pruner.k": [3, 5]}), tmp_path / "out")
    assert len(counted) == 8
    assert pl.read_parquet(again.table).equals(pl.read_parquet(first.table))
    assert plan.read_bytes() != planned  # planned anew


def test_a_lost_folder_is_made_again(small_trace, grid, tmp_path):
    first = pl.read_parquet(sweep([small_trace], grid(axes={"pruner.k": [3]}), tmp_path / "out").table)
    for name in ("plans", "cells"):
        shutil.rmtree(tmp_path / "out" / name)
        again = sweep([small_trace], grid(axes={"pruner.k": [3]}), tmp_path / "out")
        assert pl.read_parquet(again.table).equals(first)


def test_no_bit_of_a_plan_file_reaches_the_table(small_trace, grid, tmp_path):
    own = grid(axes={"pruner.k": [3, 5]})
    first = pl.read_parquet(sweep([small_trace], own, tmp_path / "out").table)
    for place in range(0, 1400, 100):
        (plan,) = (tmp_path / "out" / "plans").rglob("*.parquet")
        data = bytearray(plan.read_bytes())
        data[place % len(data)] ^= 4
        plan.write_bytes(data)
        assert pl.read_parquet(sweep([small_trace], own, tmp_path / "out").table).equals(first)


def test_an_address_depends_on_all_of_the_program():
    root = Path(replay.__file__).parents[1]
    named = {path.relative_to(root).as_posix() for path in _sources(root)}
    assert {"tracekit/config.py", "tracekit/layout.py", "tracekit/engine/step.py", "replay/sweep/grid.py"} <= named
    assert not any(name.startswith("tracekit/cli/") for name in named)


def test_another_program_or_trace_shares_nothing(small_trace, grid, counted, tmp_path, monkeypatch):
    own = grid(axes={"pruner.k": [3]})
    sweep([small_trace], own, tmp_path / "out")
    monkeypatch.setattr("replay.sweep.cells.program_digest", lambda: "other")
    sweep([small_trace], own, tmp_path / "out")
    assert len(counted) == 4
    copy_trace(small_trace, tmp_path / "trace", drop=lambda key: key.startswith("observation/depth"))
    assert Trace.open(tmp_path / "trace").digest != Trace.open(small_trace).digest
    sweep([tmp_path / "trace"], own, tmp_path / "out")
    assert len(counted) == 6
    both = sweep([small_trace, tmp_path / "trace"], own, tmp_path / "out")
    assert len(counted) == 6
    assert both.to_json()["cells"] == 4


def test_equal_configurations_are_one_cell(small_trace, grid, counted, tmp_path):
    twice = grid(kind="random", count=9, axes={"pruner.k": [3, 5]})
    found = sweep([small_trace], twice, tmp_path / "out", episodes=["close_laptop-3"])
    assert len(counted) == 2
    table = pl.read_parquet(found.table)
    assert len(table) == 9
    assert table["decisions_digest"].null_count() == 0


def test_progress_ends_at_all_cells(small_trace, grid, tmp_path):
    seen = []
    axes = {"pruner.tau_2d": [0.1, 0.3], "pruner.tau_3d": [0.2, 0.4]}
    own = grid(axes=axes, skip_invalid=True)
    found = sweep([small_trace], own, tmp_path / "out", progress=lambda *report: seen.append(report))
    assert seen[-1] == ("sweeping", 8, 8)
    assert (found.to_json()["skipped"], found.to_json()["cells"]) == (1, 6)


OWN = {"observe": {"mode": ["current", "lagged"]}, "pruner": {"tau_2d": [0.1, 0.3]}}
"""Half of it needs what a pruned pass shows, and a quarter has tau_2d above tau_3d."""


def test_what_needs_a_forward_pass_is_refused_or_left_out(small_trace, grid, tmp_path):
    with pytest.raises(TraceError, match=r'mode=lagged.*feedback = "own".*sweep --forward'):
        sweep([small_trace], grid(axes={"observe": OWN["observe"]}), tmp_path / "out")
    axes = {"observe.mode": ["lagged"], "observe.refresh_every": [3, 4, 5]}
    with pytest.raises(ConfigError, match=r"all 3 combinations are left out; the first: .*feedback"):
        sweep([small_trace], grid(axes=axes, skip_invalid=True), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    found = sweep([small_trace], grid(axes=OWN, skip_invalid=True), tmp_path / "out")
    assert (found.to_json()["skipped"], found.to_json()["cells"]) == (3, 2)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(sweep_table(found))
    assert "3 combinations are no valid configuration or need forward passes (--forward)" in console.export_text()
    assert set(pl.read_parquet(found.table)["observe.mode"]) == {"current"}
    again = sweep([small_trace], grid(axes=OWN, skip_invalid=True), tmp_path / "out", level="forward")
    assert (again.to_json()["skipped"], again.to_json()["cells"]) == (2, 4)


def test_a_grid_that_shows_late_that_it_cannot_be_used(small_trace, grid, tmp_path, monkeypatch):
    monkeypatch.setattr("replay.sweep.plan.TRIED", 1)
    late = grid(axes={"pruner.tau_2d": [0.1, 0.3], "observe.mode": ["lagged"]}, skip_invalid=True)
    with pytest.raises(ConfigError, match="all 2 combinations are left out"):
        sweep([small_trace], late, tmp_path / "out")


def test_what_cannot_be_swept_is_refused_before_a_folder_is_made(small_trace, grid, tmp_path):
    own = grid(axes={"pruner.k": [3]})
    for options, words in (
        ({"processes": 0}, "--processes 0"),
        ({"minimise": "gflops", "maximise": "gflops"}, "give one of the two"),
        ({"minimise": "rotation_dge", "level": "forward"}, "'rotation_dge' is no column.*'rotation_deg'"),
        ({"minimise": "rotation_deg"}, "'rotation_deg' is no column"),
        ({"minimise": "step_ms", "level": "forward"}, "'step_ms' is no column"),
        ({"minimise": "gflops", "where": [Constraint("kept", ">", 3)]}, "'kept' is no column"),
        ({"episodes": ["nowhere"]}, "no episode 'nowhere'"),
    ):
        with pytest.raises((ConfigError, TraceError), match=words):
            sweep([small_trace], own, tmp_path / "out", **options)
    with pytest.raises(TraceError, match="given twice"):
        sweep([small_trace, small_trace], own, tmp_path / "out")
    with pytest.raises(ConfigError, match="lower tau_2d"):
        sweep([small_trace], grid(axes={"pruner.tau_2d": [0.5]}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("")
    for place, words in ((tmp_path / "full", "is no sweep"), (small_trace / "x", "inside a store")):
        with pytest.raises(TraceError, match=words):
            sweep([small_trace], own, place)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "sweep.json").write_text('{"format": "tracekit.sweep", "version": "2.0"}')
    with pytest.raises(TraceError, match=r"holds tracekit.sweep 2.0"):
        SweepFolder(tmp_path / "new")


def command(trace, grid_file, out, *more):
    options = ["sweep", str(trace), "--grid", str(grid_file), "--out", str(out), "--json", *more]
    return [sys.executable, "-c", "from tracekit.cli import main; main()", *options]


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_to_the_same_table(small_trace, tmp_path, monkeypatch):
    (tmp_path / "grid.toml").write_text(TABLE)
    monkeypatch.setattr("replay.sweep.run.LARGEST_CHUNK", 40)
    out = tmp_path / "out"
    start = (
        "import tests.small; import replay.sweep.run as r; r.LARGEST_CHUNK = 40; from tracekit.cli import main; main()"
    )
    call = command(small_trace, tmp_path / "grid.toml", out, "--processes", "2")
    call[2] = start
    running = subprocess.Popen(call, stdout=subprocess.DEVNULL, cwd=ROOT)
    while running.poll() is None and len(list((out / "cells").glob("*.parquet"))) < 4:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    found = len(SweepFolder(out).known())
    assert 160 <= found < 2400, "killed too late"
    assert not list(out.glob("*.parquet"))
    resumed = sweep([small_trace], tmp_path / "grid.toml", out)
    assert resumed.to_json()["computed"] <= 2400 - found
    whole = sweep([small_trace], tmp_path / "grid.toml", tmp_path / "whole")
    assert Path(resumed.table).read_bytes() == Path(whole.table).read_bytes()


@pytest.mark.slow
def test_a_killed_helper_is_one_line_and_the_sweep_goes_on(small_trace, tmp_path, monkeypatch):
    (tmp_path / "grid.toml").write_text(TABLE)
    monkeypatch.setattr("replay.sweep.run.LARGEST_CHUNK", 40)

    def kill(_what, done, _total):
        if done >= 100:  # later than the helper's start, earlier than the end
            for child in multiprocessing.active_children():
                child.kill()

    with pytest.raises(TraceError, match="a process of the sweep was killed"):
        sweep([small_trace], tmp_path / "grid.toml", tmp_path / "out", processes=2, progress=kill)
    resumed = sweep([small_trace], tmp_path / "grid.toml", tmp_path / "out")
    assert 0 < resumed.to_json()["computed"] < 2400


@pytest.mark.slow
def test_two_processes_leave_the_table_of_one(small_trace, tmp_path, monkeypatch):
    (tmp_path / "grid.toml").write_text(TABLE)
    monkeypatch.setattr("replay.sweep.run.LARGEST_CHUNK", 100)
    one = sweep([small_trace], tmp_path / "grid.toml", tmp_path / "one")
    two = sweep([small_trace], tmp_path / "grid.toml", tmp_path / "two", processes=4)
    assert Path(one.table).read_bytes() == Path(two.table).read_bytes()
    assert two.to_json()["computed"] == 2400
