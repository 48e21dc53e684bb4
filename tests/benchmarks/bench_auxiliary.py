"""M^S1 with and without the auxiliary losses: `python -m tests.benchmarks.bench_auxiliary --data DEMOS --out RUNS`.

Three reference policies are trained from the same random weights on the same frames for as many steps: with all losses,
without those that ask the last layer's visual rows (for the named object, the next picture and cloud), and by the
action loss alone. An expert drives them through the same scenes of every task; the saliencies of Stage 1 (Eq. 1) are
means over steps and patches that have points. Training is resumable, as every run is.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import polars as pl

from recorders.sim.record import record_simulator
from recorders.sim.tasks import TASKS
from recorders.sim.train import TrainingPlan, train
from recorders.sim.train.losses import WEIGHTS
from replay.analysis import analyse
from tracekit.policy import load_policy
from tracekit.pruning.analysis import summary

FIRST_SEED = 3000
LAST_LAYER = ("future_pointer", "future_patch", "future_points")
"""The auxiliary losses that read the rows whose norms Stage 1 reads."""


def stage_1(policy: str, episodes: int, trace: Path) -> list[dict[str, Any]]:
    """One row per task: `m_2d_s1` and `m_3d_s1` of `policy` on `episodes` scenes, with the expert at the wheel."""
    if not trace.exists():
        record_simulator(TASKS, episodes, FIRST_SEED, trace, policy=policy, drive="expert")
    everywhere = analyse(trace).saliency.filter(pl.col("region") == "all")
    return summary(everywhere, by=("task",)).select("task", "steps", "m_2d_s1", "m_3d_s1").to_dicts()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="demonstrations, recorded where they are missing")
    parser.add_argument("--out", type=Path, required=True, help="folder of the two runs and their traces")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--episodes", type=int, default=2, help="recorded per task")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    result: dict[str, Any] = {"steps": options.steps, "seeds": [FIRST_SEED, FIRST_SEED + options.episodes - 1]}
    for name, auxiliary, silent in (("with", True, ()), ("without_last", True, LAST_LAYER), ("without", False, ())):
        run = options.out / name
        plan = TrainingPlan(steps=options.steps, auxiliary=auxiliary)
        with patch.dict(WEIGHTS, dict.fromkeys(silent, 0.0)):
            trained = train(run, options.data, plan, threads=options.threads)
        rows = stage_1(str(run / "policy"), options.episodes, options.out / f"{name}.zarr")
        result[name] = {"weights_digest": trained.weights_digest, "held_out": trained.held_out, "tasks": rows}
    rows = stage_1("reference", options.episodes, options.out / "packaged.zarr")
    result["packaged"] = {"weights_digest": load_policy("reference").identity.weights_digest, "tasks": rows}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
