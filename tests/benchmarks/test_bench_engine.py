"""The engine's benchmark runs and prints every figure; what they are is for a quiet machine."""

import json
from dataclasses import replace

import pytest
import torch

from tests.benchmarks import bench_engine
from tracekit.bench.limits import Limits
from tracekit.bench.model import preset_config

pytestmark = pytest.mark.slow

SMALL = {"hidden_size": 32, "heads": 2, "kv_heads": 2, "intermediate_size": 48, "layers": 2}
FIGURES = (
    "100 FLOP per byte",
    "the release (limits: ",
    ", pruning ",
    "prefill over 64 visual tokens",
    "ms per step: ",
    "throughput mode, 2 episodes",
    "32 layers, projected: release ",
)


class Machine:
    """A machine of 1 TFLOP/s and 10 GB/s: measuring a real one takes longer than what is tested here."""

    def __init__(self, dtype, device):
        pass

    def __call__(self):
        return Limits(matrix_rate=1e12, bandwidth=1e10)


@pytest.fixture
def run(monkeypatch, capsys):
    """Output of the benchmark on a small policy, by its arguments."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(bench_engine, "LimitsProbe", Machine)
    monkeypatch.setattr(bench_engine, "STEPS", 3)
    monkeypatch.setattr(bench_engine, "JOBS", 2)
    monkeypatch.setattr(bench_engine, "PREFILLED", (512, 64))
    case = (lambda: replace(preset_config("reference"), **SMALL), "float32")
    monkeypatch.setattr(bench_engine, "CASES", {"small": case})

    def output(*arguments):
        monkeypatch.setattr("sys.argv", ["bench_engine", "--rounds", "1", *arguments])
        bench_engine.main()
        return capsys.readouterr().out

    yield output
    torch.set_num_threads(threads)


def test_every_figure_is_printed(run):
    text = run()
    for wanted in FIGURES:
        assert wanted in text, wanted


def test_factors_are_of_the_milliseconds_beside_them(run):
    row = json.loads(run("--json"))["small"]
    assert row["kept"] == 154  # 512 · (1 - 0.7), rounded for each modality
    for side in ("lagged", "current", "kv drop"):
        assert row["total"][side] == pytest.approx(row["step_ms"]["release"] / row["step_ms"][side])
        assert row["pruning_at_the_limit"][side] == pytest.approx(row["limit_ms"]["prefix"] / row["limit_ms"][side])
        assert row["limit_ms"][side] < row["limit_ms"]["release"]
    few, all_tokens = (row["prefill_ms_and_limit"][visual][1] for visual in ("64", "512"))
    assert few < all_tokens
