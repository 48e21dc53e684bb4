"""A recorder that is killed loses no committed episode, and at most the last 16 steps of the running one."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter

import numpy as np
import pytest

from tests.recorders.killed_recorder import EPISODES, STEPS
from tests.tracekit.store.killing import Killer
from tracekit import keys
from tracekit.store import Trace, repair, verify

MOST_LOST = 16


def chosen(operation: str) -> bool:
    """Renames, fsyncs, and writes to the journal: its lines, the manifests, the logs of steps."""
    kind, _, name = operation.partition(" ")
    return kind in {"rename", "sync", "sync_folder"} or (kind == "write" and ".json" in name and name != "zarr.json")


@pytest.fixture(scope="module")
def killer():
    with Killer("tests.recorders.killed_recorder") as killer:
        yield killer


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 61])
def test_killed_at_every_rename_fsync_and_journal_write(killer, tmp_path, every):
    operations = killer.operations(tmp_path / "counted")
    check(tmp_path / "counted", [f"committed {name}" for name in EPISODES])
    places = [number for number, operation in enumerate(operations, 1) if chosen(operation)]
    kinds = Counter(operations[number - 1].split()[0] for number in places)
    assert kinds["rename"] == 9  # the store, its four root files, and of both episodes a manifest and the move
    assert kinds["sync"] > 100
    assert kinds["write"] > 2 * STEPS
    path = tmp_path / "killed"
    lost = []
    for kill_at in places[::every]:
        shutil.rmtree(path, ignore_errors=True)
        said = killer.kill(path, kill_at)
        lost.append(check(path, said))
    assert max(lost) <= MOST_LOST
    print(f"{len(lost)} kills at {dict(kinds)}; at most {max(lost)} steps lost")


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_random_moments(killer, tmp_path, kills):
    path = tmp_path / "killed"
    start = time.monotonic()
    killer.kill(path, -1, status=0)
    took = time.monotonic() - start
    draw = random.Random(9)
    lost, taken = [], []
    for _ in range(kills):
        shutil.rmtree(path)
        said = killer.kill_after(path, draw.uniform(0, took))
        lost.append(check(path, said))
        taken.append(sum(line.startswith("step") for line in said))
        path.mkdir(exist_ok=True)
    assert max(lost) <= MOST_LOST
    assert len(set(taken)) > 1
    print(f"{kills} kills, after {min(taken)} to {max(taken)} steps; at most {max(lost)} steps lost")


def check(path, said: list[str]) -> int:
    """Steps that were taken before the kill and are not there after `repair`; everything that is there is right."""
    committed = [line.split()[1] for line in said if line.startswith("committed")]
    if not path.exists():  # killed before there was a trace
        assert "opened" not in said
        return 0
    before = Trace.open(path)
    for name in committed:
        check_steps(before, name, STEPS)
    assert len(before.episodes) - len(committed) in {0, 1}  # killed between the commit and saying so
    repair(path)
    assert verify(path).clean
    trace = Trace.open(path)
    found = {info.id: info for info in trace.episodes}
    for name in committed:
        assert not found[name].truncated
        check_steps(trace, name, STEPS)
    running = next((name for name in EPISODES if name not in committed), None)
    if running is None:
        return 0
    kept = found[running].steps if running in found else 0
    if kept:
        check_steps(trace, running, kept)
    return said.count(f"step {running}") - kept


def check_steps(trace: Trace, name: str, steps: int) -> None:
    episode = trace.episode(name)
    assert episode.info.steps == steps
    numbers = np.arange(1, steps + 1)
    np.testing.assert_array_equal(episode.read(keys.STEP_NUMBER), numbers)
    for key in (keys.ACTION_EXECUTED, keys.ACTION_POLICY, keys.ACTION_NOISE):
        values = episode.read(key)
        np.testing.assert_array_equal(values, np.broadcast_to(numbers.reshape(-1, 1, 1), values.shape))
    for key in episode:
        assert len(episode.read(key)) == steps
