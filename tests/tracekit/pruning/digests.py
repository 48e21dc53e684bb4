"""Digests of decisions on recorded inputs: `python -m tests.tracekit.pruning.digests` prints them as JSON.

Run in a fresh process under any environment; `test_bit_exactness` compares with the committed ones.
"""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

from tracekit.pruning import PRUNERS, DecisionKey, Observables, Scores, Shape, decision_digest
from tracekit.pruning.tri_stage import TriStageConfig, decide, initial_state

HERE = Path(__file__).parent / "recorded"
SHAPE = Shape(256, 256)
MIDDLE = {"tau_2d": 0.55, "tau_3d": 0.68}
"""Thresholds in the midst of the recorded saliencies: a policy without training has heavy 3D features."""

TRI_STAGE = {
    "default": {},
    "middle": MIDDLE,
    "without stage 3": {**MIDDLE, "stages": ("s1", "s2")},
    "stage 1": {**MIDDLE, "stages": ("s1", "s3")},
    "seed and sticky": {**MIDDLE, "seed": 2**63 + 5, "draw": "sticky"},
    "stratified": {**MIDDLE, "draw": "stratified"},
    "window": {**MIDDLE, "window": "window_mean", "k": 3},
    "smoothed sets": {**MIDDLE, "cluster_input": "smoothed", "beta": 0.6, "k": 3},
    "separate, per set": {**MIDDLE, "clustering": "separate", "baseline": "per_set"},
    "inverse, quantiles": {**MIDDLE, "cluster_order": "inverse", "object_rule": "quantiles"},
    "soft": {**MIDDLE, "budget": "soft", "rate": 0.8},
    "hard": {**MIDDLE, "budget": "hard_topk", "rate": 0.6},
    "whole background": {**MIDDLE, "background_rate": 1.0},
}
BASELINES = {
    "naive": ("naive", {"rate": 0.6}),
    "fastv": ("fastv", {"rate": 0.6}),
    "fastv, action": ("fastv", {"rate": 0.6, "query": "action"}),
    "sp_vla": ("sp_vla", {"rate": 0.6}),
    "sp_vla, velocity": ("sp_vla", {"budget": "velocity", "full_speed_mm": 50.0}),
    "vla_pruner": ("vla_pruner", {"rate": 0.6, "warmup": "none"}),
    "vla_pruner, released": ("vla_pruner", {"rate": 0.6, "warmup": "none", "variant": "released", "layer": 2}),
}


def episodes():
    """Episode id -> its scores, uid, and (steps, N_3D) patches of the point tokens."""
    with np.load(HERE / "scores.npz") as stored:
        ids = sorted({name.split("/")[0] for name in stored})
        return {
            name: (
                Scores(**{field.name: stored[f"{name}/{field.name}"] for field in dataclasses.fields(Scores)}),
                int(stored[f"{name}/uid"]),
                stored[f"{name}/patch"],
            )
            for name in ids
        }


def steps_seen():
    """Observables of two successive steps."""
    with np.load(HERE / "observables.npz") as stored:
        found = []
        for index in sorted({name.split("/")[0] for name in stored}):
            parts = {name.split("/")[1]: stored[name] for name in stored if name.startswith(f"{index}/")}
            moved = float(parts.pop("displacement_m"))
            groups = ("text", "state", "action")
            found.append(Observables(norms={}, groups=groups, displacement_m=moved, **parts))
        return found


def one_by_one(scores, config, uid, patch):
    state, decisions = initial_state(config, SHAPE), []
    for index in range(len(scores)):
        key = DecisionKey(config.seed, uid, index + 1)
        decision, state = decide(scores.step(index), state, config, key, SHAPE, patch=patch[index])
        decisions.append(decision)
    return decisions


def all_digests():
    found = {}
    for name, options in TRI_STAGE.items():
        decisions = []
        for scores, uid, patch in episodes().values():
            decisions += one_by_one(scores, TriStageConfig(**options), uid, patch)
        found[f"tri_stage: {name}"] = decision_digest(decisions)
    for name, (kind, options) in BASELINES.items():
        method = PRUNERS[kind]
        config = method.config(**options)
        state, decisions = method.initial_state(config, SHAPE), []
        for step, seen in enumerate(steps_seen(), 4):
            key = DecisionKey(0, 7, step)
            decision, state = method.decide(seen, state, config, key, SHAPE, patch=seen.patch)
            decisions.append(decision)
        found[name] = decision_digest(decisions)
    return found


def environment():
    """What this process computes with: NumPy's instruction sets, the BLAS kernels and threads, numba's target."""
    import numba
    import threadpoolctl
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    of_numpy = next((pool for pool in pools if "numpy" in pool["filepath"]), {})
    return {
        "features": [name for name in __cpu_dispatch__ if __cpu_features__[name]],
        "kernels": of_numpy.get("architecture"),
        "threads": of_numpy.get("num_threads"),
        "compiled_for": numba.config.CPU_NAME,
    }


if __name__ == "__main__":
    json.dump({"digests": all_digests(), "environment": environment()}, sys.stdout)
