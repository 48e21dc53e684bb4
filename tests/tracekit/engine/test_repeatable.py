"""Latency mode gives the same bits in another process, in another order, and again, however a step is computed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
SCRIPT = """
import hashlib, json, sys
import numpy as np
from recorders.sim import Environment
from tests.small import make_policy
from tracekit.config import Configuration
from tracekit.engine import Controller

policy = make_policy(layers=4)
environment = Environment("close_box")
first = environment.reset(7)
action = np.r_[0.05, 0, -0.05, first.state[3:9], 0.0]
observations = [first, *(environment.step(action).observation for _ in range(3))]

def digest(table):
    controller = Controller(policy, Configuration.from_table(table, "table"))
    controller.reset(11)
    found = hashlib.sha256()
    for observation in observations:
        result = controller.step(observation)
        found.update(result.samples.tobytes() + result.kept.tobytes() + result.action.tobytes())
    return found.hexdigest()

tables = json.loads(sys.argv[1])
print(json.dumps({name: digest(tables[name]) for name in json.loads(sys.argv[2])}))
"""
PINNED = {"kind": "prefix_kv", "fps": "pinned"}
TRI_STAGE = {"kind": "tri_stage", "background_rate": 0.5}
TABLES = {
    "current": {"pruner": TRI_STAGE},
    "lagged": {"pruner": TRI_STAGE, "observe": {"mode": "lagged", "refresh_every": 3}, "reuse": PINNED},
    "kv = drop": {"pruner": TRI_STAGE, "reuse": {**PINNED, "kv": "drop"}},
    "mask": {"pruner": TRI_STAGE, "reuse": {"kind": "mask"}, "observe": {"refresh_every": 2}},
    "skip_frame": {"pruner": TRI_STAGE, "reuse": {"kind": "skip_frame"}},
    "mask-only": {"pruner": TRI_STAGE, "execution": {"drop": "mask"}},
    "fastv": {"pruner": {"kind": "fastv", "layer": 1}, "reuse": PINNED},
    "vla_pruner": {"pruner": {"kind": "vla_pruner", "layer": 1, "window": 2}, "reuse": {"fps": "pinned"}},
    "bfloat16": {"pruner": TRI_STAGE, "reuse": PINNED, "execution": {"dtype": "bfloat16"}},
}


def digests(order, **settings):
    tables = {
        name: table | {"execution": {"threads": 1, **table.get("execution", {})}} for name, table in TABLES.items()
    }
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, json.dumps(tables), json.dumps(order)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **settings}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_processes_order_and_repeats_give_the_same_bits():
    names = list(TABLES)
    first = digests([*names, *names])
    assert len(set(first.values())) == len(names)  # they are told apart
    assert digests(names[::-1], PYTHONHASHSEED="7", OMP_NUM_THREADS="3", OMP_DYNAMIC="TRUE") == first
    assert digests(names[3:4], OMP_WAIT_POLICY="ACTIVE") == {names[3]: first[names[3]]}
