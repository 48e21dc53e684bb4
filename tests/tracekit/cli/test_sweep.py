"""`tracekit sweep`: exit codes, documented keys, and what is written."""

import polars as pl
import pytest

from tracekit.config import load_config


@pytest.fixture
def grid(tmp_path):
    file = tmp_path / "grid.toml"
    file.write_text('name = "own"\nkind = "cartesian"\n[axes]\npruner.background_rate = [0.2, 0.9]\n')
    return file


def test_sweep(run, small_trace, grid, tmp_path):
    out = tmp_path / "out"
    ran = run("sweep", small_trace, "--grid", grid, "--out", out, "--json")
    assert (ran.status, ran.err) == (0, "")
    assert ran.data.keys() >= {"cells", "steps", "cells_per_second", "distinct_kmeans", "table", "open_loop"}
    assert (ran.data["cells"], ran.data["steps"], ran.data["distinct_kmeans"]) == (4, 12, 6)
    assert len(pl.read_parquet(ran.data["table"])) == 4
    text = run("sweep", small_trace, "--grid", grid, "--out", out, "--minimise", "gflops", "--where", "kept_2d>=0")
    assert (text.status, text.err) == (0, "")
    for word in ("Open-loop", "background_rate=0.9", "Every cell was there already", "best.toml", "own.parquet"):
        assert word in " ".join(text.out.split()).replace("own. parquet", "own.parquet"), word
    assert load_config(out / "best.toml").name == "background_rate=0.9"


def test_a_constraint_that_nothing_meets_is_a_failed_gate(run, small_trace, grid, tmp_path):
    options = ("--grid", grid, "--out", tmp_path / "out", "--minimise", "gflops", "--where", "effective_rate > 2")
    ran = run("sweep", small_trace, *options)
    assert ran.status == 1
    assert "No configuration meets" in ran.out
    assert not (tmp_path / "out" / "best.toml").exists()
    assert run("sweep", small_trace, *options, "--json").data["best"] is None


def test_the_default_grid_and_folder(run, small_trace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = run("sweep", small_trace, "--episodes", "close_laptop-3", "--json")
    assert (ran.data["grid"], ran.data["configurations"]) == ("fig7", 21)
    assert (tmp_path / "fig7.sweep" / "fig7.parquet").is_file()


def test_unusable_input_is_one_line(run, small_trace, grid, tmp_path):
    out = tmp_path / "out"
    for arguments, words in (
        (("nowhere", "--grid", grid), "nowhere"),
        ((small_trace, "--grid", "fig8"), "no such file or grid; grids: fig7, naive, rank"),
        ((small_trace, "--grid", grid, "--where", "gflops < 3"), "--minimise or --maximise"),
        ((small_trace, "--grid", grid, "--minimise", "gflops", "--where", "gflops"), "give a column"),
        ((small_trace, "--grid", grid, "--processes", "0"), "at least 1"),
    ):
        ran = run("sweep", *arguments, "--out", out)
        assert (ran.status, ran.out) == (2, "")
        assert words in ran.err
        assert ran.err.count("\n") == 1
    assert not out.exists()
    ran = run("sweep", small_trace, "--grid", grid, "--out", out, "--minimise", "mm")
    assert (ran.status, ran.out) == (2, "")
    assert "'mm' is no column" in ran.err


def test_a_forward_sweep(run, small_trace, grid, tmp_path):
    options = ("--grid", grid, "--out", tmp_path / "out", "--episodes", "close_laptop-3", "--forward")
    refused = run("sweep", small_trace, *options, "--processes", 2)
    assert (refused.status, refused.out) == (2, "")
    ran = run("sweep", small_trace, *options, "--no-timing")
    assert (ran.status, ran.err) == (0, "")
    for word in ("deviation", "Open-loop", "random weights"):
        assert word in ran.out
