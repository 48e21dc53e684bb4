"""What the tests of sweeps share."""

import polars as pl
import pytest

from replay.source import TraceSource
from replay.sweep import grid_of, sweep
from replay.sweep.cells import Target
from replay.sweep.inputs import EpisodeInputs


@pytest.fixture(scope="session")
def inputs(small_trace):
    """Inputs of every episode of the small trace."""
    source = TraceSource(small_trace)
    return [
        EpisodeInputs(
            Target(str(small_trace), source.trace.digest, episode.info.id, episode.info.uid, "", len(episode)), episode
        )
        for episode in source.episodes()
    ]


@pytest.fixture(scope="session")
def grid():
    """A grid by its keys."""
    return lambda **table: grid_of({"name": "g", "kind": "cartesian", **table}, "g.toml")


@pytest.fixture(scope="session")
def swept(small_trace, grid, tmp_path_factory):
    """A finished sweep of 12 configurations, and its table."""
    out = tmp_path_factory.mktemp("swept") / "out"
    axes = {"pruner": {"background_rate": [0.2, 0.5, 0.9], "seed": [0, 1], "cluster_order": ["attention", "inverse"]}}
    found = sweep([small_trace], grid(axes=axes), out, minimise="gflops")
    return found, pl.read_parquet(found.table)
