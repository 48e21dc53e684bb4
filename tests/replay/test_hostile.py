"""Other threads, other OpenMP settings, another hash seed, a busy machine: decisions and latency-mode forwards hold."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from replay import Replay
from reports import diff_replays
from tests.small import make_config
from tracekit.config import Configuration

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, sys
import tests.small
from replay import Replay, replay_decisions
from tracekit.config import Configuration
from tracekit.pruning import decision_digest

trace, tables = sys.argv[1], json.loads(sys.argv[2])
configs = [Configuration.from_table(table, "table") for table in tables]
found = {row["name"]: row for row in Replay(trace).run(*configs).to_json()["configurations"]}
stored = {
    config.name: [decision_digest(decisions) for decisions in replay_decisions(trace, config).values()]
    for config in configs
}
print(json.dumps({
    "forward": {name: [row["decisions_digest"], row["actions_digest"]] for name, row in found.items()},
    "stored": stored,
}))
"""
CONFIGS = (
    make_config(),
    make_config("tri_stage", background_rate=0.5, seed=3),
    make_config("tri_stage", "prefix_kv", name="kv", cluster_input="smoothed"),
    make_config("naive"),
)
ENVIRONMENTS = {
    "one thread": {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    "many threads": {"OMP_NUM_THREADS": "7", "MKL_NUM_THREADS": "5", "NUMBA_NUM_THREADS": "3"},
    "spinning threads": {"OMP_WAIT_POLICY": "ACTIVE", "OMP_DYNAMIC": "TRUE", "KMP_BLOCKTIME": "200"},
    "another schedule": {"OMP_SCHEDULE": "dynamic,1", "OMP_PROC_BIND": "false", "MKL_DYNAMIC": "TRUE"},
    "another hash seed": {"PYTHONHASHSEED": "12345"},
    "no vector units in NumPy": {"NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F AVX512_SKX"},
}


def elsewhere(trace, settings):
    """The digests that a process of its own finds under environment variables."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **settings}
    tables = json.dumps([config.to_json() for config in CONFIGS])
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(trace), tables]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def here(small_trace):
    return elsewhere(small_trace, {})


@pytest.mark.parametrize("settings", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_another_environment_gives_the_same_bits(small_trace, here, settings):
    assert elsewhere(small_trace, settings) == here


def _busy(stop):
    while not stop.is_set():
        sum(range(10_000))


def test_a_busy_machine_gives_the_same_bits(small_trace, here):
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    busy = [context.Process(target=_busy, args=(stop,)) for _ in range(4)]
    for process in busy:
        process.start()
    try:
        assert elsewhere(small_trace, {}) == here
    finally:
        stop.set()
        for process in busy:
            process.join()


def test_other_thread_counts_flip_no_bit_by_logic_or_for_real(small_trace, tmp_path):
    """A configuration of other threads is another execution of the same method, equal to rounding at least."""
    for threads in (1, 2, 3):
        configs = [
            Configuration.from_table({**config.to_json(), "execution": {"threads": threads}}, "t") for config in CONFIGS
        ]
        Replay(small_trace).run(*configs).save(tmp_path / str(threads))
    for threads in (2, 3):
        found = diff_replays(tmp_path / "1", tmp_path / str(threads))
        assert found.tolerable
        for detail in found.details:
            assert detail.counts["logic"] == detail.counts["real"] == 0
            assert detail.actions_relative < 1e-4
