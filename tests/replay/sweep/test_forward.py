"""Forward sweeps: cells are replays, encoders run once for all, step times are measured beside the unpruned policy."""

import polars as pl
import pytest

from replay import Replay
from replay.sweep import sweep
from replay.sweep.forward import _OneStep
from tests.small import make_config
from tracekit.errors import ConfigError

LISTED = [
    make_config("none", "prefix_kv", name="kv"),
    make_config("naive", rate=0.3),
    make_config("tri_stage", "prefix_kv", background_rate=0.5),
    make_config("tri_stage", "mask", fps="recorded", name="mask"),
]


@pytest.fixture(scope="module")
def listed(grid):
    return grid(kind="listed", configurations=[config.to_json() for config in LISTED])


@pytest.fixture(scope="module")
def swept(small_trace, listed, tmp_path_factory):
    out = tmp_path_factory.mktemp("forward") / "out"
    return sweep([small_trace], listed, out, level="forward", timing=True, minimise="unclipped_relative")


def test_a_cell_is_a_replay(swept, small_trace):
    table = pl.read_parquet(swept.table)
    rows = {(row["name"], row["episode"]): row for row in table.iter_rows(named=True)}
    for episode in ("close_box-7", "close_laptop-3"):
        for found in Replay(small_trace, episodes=[episode]).run(*LISTED).to_json()["configurations"]:
            row = rows[found["name"], episode]
            for name in ("kept_2d", "kept_3d", "effective_rate", "decisions_digest", "actions_digest"):
                assert row[name] == found[name], (name, found["name"])
            for name in ("translation_mm", "rotation_deg", "gripper_flips", "unclipped_relative"):
                assert row[name] == found["deviation"][name]
            assert row["unpruned_relative"] == found["deviation_unpruned"]["unclipped_relative"]
    assert set(table["level"]) == {"forward"}
    assert table.filter(pl.col("name") == "mask")["gflops"].null_count() == 2  # steps without deciding are not counted
    assert table.filter(pl.col("name") == "kv")["gflops"].null_count() == 0


def test_the_front_is_step_time_against_deviation(swept):
    assert swept.objectives == ("time_ratio", "unclipped_relative")
    assert (swept.summary["time_ratio"] > 0).all()
    assert (swept.summary["step_ms"] > 0).all()
    assert swept.best["name"] == swept.summary.sort("unclipped_relative")["name"][0]
    assert swept.summary["pareto"].sum() >= 1
    table = pl.read_parquet(swept.table)
    assert (table["speedup_pruning"] > 0).all()


def test_what_was_measured_is_not_measured_again(swept, small_trace, listed, monkeypatch):
    monkeypatch.setattr("replay.sweep.worker.time_configurations", None)
    monkeypatch.setattr("replay.sweep.forward.replay_steps", None)
    again = sweep([small_trace], listed, swept.table.parent, level="forward", timing=True)
    assert again.to_json()["computed"] == 0
    assert again.summary.equals(swept.summary)
    without = sweep([small_trace], listed, swept.table.parent, level="forward")
    assert without.objectives == ("effective_rate", "unclipped_relative")  # operations are not known of all
    assert without.summary["pareto"].any()


def test_times_need_the_machine_for_themselves(small_trace, listed, tmp_path):
    for options in ({"level": "forward", "processes": 2}, {"level": "decisions"}):
        with pytest.raises(ConfigError, match="in a forward sweep in one process"):
            sweep([small_trace], listed, tmp_path / "out", timing=True, **options)


def test_encoders_run_once_for_all_configurations(small_trace, grid, tmp_path, monkeypatch):
    made, asked = [], []
    own = _OneStep.embed_prefix

    def counting(self, tokens, fps_starts):
        asked.append(fps_starts)
        before = len(self._prefixes)
        prefix = own(self, tokens, fps_starts)
        made.extend([1] * (len(self._prefixes) - before))
        return prefix

    monkeypatch.setattr(_OneStep, "embed_prefix", counting)
    three = grid(base="default-prefix-kv", axes={"pruner.background_rate": [0.1, 0.5, 0.9]})
    sweep([small_trace], three, tmp_path / "out", level="forward", episodes=["close_laptop-3"])
    assert len(asked) == 2 * 4  # two steps, three configurations and their reference
    assert len(made) == 2


def test_in_throughput_mode_configurations_run_side_by_side(small_trace, grid, tmp_path):
    tables = [config.to_json() for config in LISTED[:3]]
    for table in tables:
        table["execution"] = {**table["execution"], "mode": "throughput"}
    several = grid(kind="listed", configurations=tables)
    found = sweep([small_trace], several, tmp_path / "out", level="forward", timing=True, episodes=["close_laptop-3"])
    table = pl.read_parquet(found.table)
    assert table["step_ms"].null_count() == 3  # several steps at once have no time of their own
    alone = Replay(small_trace, episodes=["close_laptop-3"]).run(*LISTED[:3]).to_json()["configurations"]
    for row, one in zip(table.iter_rows(named=True), alone, strict=True):
        assert row["unclipped_relative"] == pytest.approx(one["deviation"]["unclipped_relative"], abs=1e-4)
        assert row["kept_2d"] == pytest.approx(one["kept_2d"], abs=2)


def test_decisions_of_a_live_pruned_trace_are_refused(tmp_path, small_trace, listed):
    from tracekit.errors import TraceError
    from tracekit.store import Trace, TraceWriter
    from tracekit.store.copying import copy_episode

    trace = Trace.open(small_trace)
    about = {**trace.attributes, "kind": "pruned_live", "configuration": make_config("naive").to_json()}
    with TraceWriter.create(tmp_path / "live", about) as writer:
        copy_episode(trace.episode("close_laptop-3"), writer, None, None)
    with pytest.raises(TraceError, match=r"was pruned while it was recorded.*use --forward"):
        sweep([tmp_path / "live"], listed, tmp_path / "out")
