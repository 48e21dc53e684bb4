"""Puts the policy of a run where the package ships it, unless its held-out loss is no lower than what is there."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from recorders.sim.train.card import model_card
from recorders.sim.train.run import CARD, CURVE, POLICY, SUMMARY
from tracekit.errors import TraceError, TracekitError

__all__ = ["publish"]

_LARGEST_BYTES = 8_000_000
"""What a wheel may carry of one policy."""


def publish(run: Path, destination: Path, evaluation: Path | None = None) -> bool:
    """Copy policy, curve and card of the folder `run` to `destination`; False where what is there is not worse.

    Compared is the held-out noise loss, where both were measured on the same version of the scenes; the same weights
    replace their own card. `evaluation`: output of
    `evaluate --json`, for the card. Raises TraceError where the run has no held-out loss yet, its evaluation is of
    other weights, or its weights are larger than 8 MB.
    """
    training = _read(run / SUMMARY)
    if "noise" not in training["held_out"]:
        raise TraceError(f"{run}: no held-out loss yet, so nothing to compare; let it train on")
    weights = run / POLICY / "model.safetensors"
    if weights.stat().st_size > _LARGEST_BYTES:
        raise TraceError(f"{weights}: more than the {_LARGEST_BYTES} bytes a wheel may carry; train a smaller policy")
    results = None if evaluation is None else _read(evaluation)
    if results is not None:
        evaluated = {entry["policy"]["weights_digest"] for entry in results["configurations"]}
        if training["weights_digest"] not in evaluated:
            raise TraceError(f"{evaluation}: is of other weights than {run}; evaluate {run / POLICY}")
    if (destination / SUMMARY).exists():
        there = _read(destination / SUMMARY)
        same = there["weights_digest"] == training["weights_digest"]
        comparable = there.get("scene_version") == training["scene_version"]
        if comparable and not same and there["held_out"]["noise"] <= training["held_out"]["noise"]:
            return False
    fresh = destination.with_name(f".{destination.name}.{os.getpid()}")
    try:
        shutil.copytree(run / POLICY, fresh)
        for name in (CURVE, SUMMARY):
            shutil.copy(run / name, fresh / name)
        (fresh / CARD).write_text(model_card(training, results), "utf-8")
        shutil.rmtree(destination, ignore_errors=True)
        fresh.rename(destination)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return True


def _read(path: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TraceError(f"{path}: cannot be read ({error}); give the folder of a training run") from error
    return data


if __name__ == "__main__":
    try:
        better = publish(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)
    except TracekitError as error:
        sys.exit(f"publish: {error}")
    sys.stdout.write("published\n" if better else "what is there is not worse: left as it is\n")
