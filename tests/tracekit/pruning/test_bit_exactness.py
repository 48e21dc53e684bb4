"""Decisions on recorded inputs have committed digests, under every arithmetic, in every order and in any batch."""

import dataclasses
import json
import os
import platform
import subprocess
import sys

import numpy as np
import pytest

from tests.tracekit.pruning import digests
from tests.tracekit.pruning.digests import SHAPE, TRI_STAGE, all_digests, environment, episodes
from tracekit.pruning import DecisionKey, Scores, decision_digest
from tracekit.pruning.grid import decide_grid
from tracekit.pruning.tri_stage import TriStageConfig, TriStageState, decide_episode

COMMITTED = json.loads((digests.HERE / "digests.json").read_text())
SCORES = [field.name for field in dataclasses.fields(Scores)]


def test_this_process_decides_as_committed():
    assert all_digests() == COMMITTED
    assert len(set(COMMITTED.values())) == len(COMMITTED)


def elsewhere(**variables):
    """The digests and the environment of a fresh process."""
    path = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-m", "tests.tracekit.pruning.digests"]
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**kept, "PYTHONPATH": path, **variables}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def threads(count):
    return {f"{library}_NUM_THREADS": str(count) for library in ("OMP", "OPENBLAS", "MKL", "NUMBA")}


def test_no_thread_count_instruction_set_or_kernel_changes_a_bit():
    plain = {"NPY_DISABLE_CPU_FEATURES": " ".join(environment()["features"]), "OPENBLAS_CORETYPE": "Prescott"}
    one = elsewhere(**plain, **threads(1))
    other = elsewhere(OPENBLAS_CORETYPE="Haswell", **threads(4))
    assert one["digests"] == other["digests"] == COMMITTED
    assert one["environment"]["features"] == []
    if platform.machine() == "x86_64" and one["environment"]["kernels"] is not None:  # NumPy runs on OpenBLAS
        assert one["environment"]["kernels"] != other["environment"]["kernels"] == "Haswell"
        assert one["environment"]["threads"] == 1 < other["environment"]["threads"]


@pytest.mark.slow
def test_machine_code_for_the_plainest_processor_changes_no_bit(tmp_path):
    found = elsewhere(NUMBA_CPU_NAME="x86-64", NUMBA_CPU_FEATURES="+sse,+sse2", NUMBA_CACHE_DIR=str(tmp_path))
    assert found["environment"]["compiled_for"] == "x86-64"
    assert found["digests"] == COMMITTED


def test_no_order_of_the_patches_changes_a_bit():
    options = TRI_STAGE["whole background"]  # nothing is drawn: draws belong to places and would not move along
    config = TriStageConfig(**options)
    rng = np.random.default_rng(0)
    decisions = []
    for scores, uid, _ in episodes().values():
        order = rng.permutation(SHAPE.n_2d)
        shuffled = Scores(*(np.ascontiguousarray(getattr(scores, name)[:, order]) for name in SCORES))
        back = np.argsort(order)
        for decision in decide_episode(shuffled, config, DecisionKey(config.seed, uid, 1), SHAPE)[0]:
            masks = ("keep_2d", "keep_3d_patches", "s1", "s2", "cluster", "conflict")
            decisions.append(dataclasses.replace(decision, **{name: getattr(decision, name)[back] for name in masks}))
    assert decision_digest(decisions) == COMMITTED["tri_stage: whole background"]


@pytest.mark.parametrize("name", sorted(TRI_STAGE))
@pytest.mark.parametrize("batch", [1, 3, 100])
def test_no_batch_size_changes_a_bit(name, batch):
    config, decisions = TriStageConfig(**TRI_STAGE[name]), []
    for scores, uid, patch in episodes().values():
        state = None
        for start in range(0, len(scores), batch):
            part = slice(start, start + batch)
            some = Scores(*(getattr(scores, field)[part] for field in SCORES))
            key = DecisionKey(config.seed, uid, start + 1)
            found, state = decide_episode(some, config, key, SHAPE, state=state, patch=patch[part])
            state = TriStageState.from_arrays(state.to_arrays())
            decisions += found
    assert decision_digest(decisions) == COMMITTED[f"tri_stage: {name}"]


def test_no_other_configuration_and_no_other_episode_changes_a_bit():
    configs = [TriStageConfig(**options) for options in TRI_STAGE.values()]
    found = {name: [] for name in TRI_STAGE}
    for scores, uid, patch in reversed(episodes().values()):
        grid = decide_grid(scores, configs, uid, SHAPE, patch=patch)
        for place, name in enumerate(TRI_STAGE):
            found[name] = [grid.decision(place, index) for index in range(len(scores))] + found[name]
    assert {f"tri_stage: {name}": decision_digest(decisions) for name, decisions in found.items()} == {
        name: digest for name, digest in COMMITTED.items() if name.startswith("tri_stage: ")
    }
