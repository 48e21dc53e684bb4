"""Puts the policy of a run where the package ships it, unless its held-out loss is no lower than what is there."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from recorders.sim.blind import BLIND
from recorders.sim.train.card import model_card
from recorders.sim.train.folder import CARD, CURVE, POLICY, replace_directory
from recorders.sim.train.papers import SUMMARY, read_papers
from tracekit.errors import ConfigError, TraceError, TracekitError
from tracekit.model import load_policy_directory

__all__ = ["publish"]

_WEIGHTS = "model.safetensors"
_LARGEST_BYTES = 8_000_000
"""What a wheel may carry of one policy."""


def publish(run: Path, destination: Path, evaluation: Path | None = None) -> bool:
    """Copy policy, curve and card of the folder `run` to `destination`; False where what is there is not worse.

    Compared is the held-out noise loss, where both were measured on the same version of the scenes; a policy of newer
    scenes replaces one of older, never the other way round. `evaluation`: output of `evaluate --json`, for the card;
    with one, the same weights replace their own card.

    Raises PolicyError for damaged papers, TraceError where the run has no held-out loss yet, its papers or its
    evaluation are of other weights or scenes, or its weights are larger than 8 MB, ConfigError where `destination` is
    no published policy or is one of another kind: with eyes where the run's is blind, or of other tasks. Nothing is
    touched then.
    """
    try:
        destination = destination.resolve()  # what a link leads to is replaced, not the link
    except (OSError, RuntimeError) as error:  # a link to itself
        raise TraceError(f"{destination}: cannot be followed ({error}); give another path") from error
    training = read_papers(run)
    card = _card(run, training, evaluation)
    if "noise" not in training["held_out"]:
        raise TraceError(f"{run}: no held-out loss yet, so nothing to compare; let it train on")
    if os.path.lexists(destination) and not _to_be_replaced(destination, training, evaluated=evaluation is not None):
        return False
    fresh = destination.with_name(f".{destination.name}.{os.getpid()}")
    try:
        shutil.copytree(run / POLICY, fresh)
        shutil.copy(run / CURVE, fresh / CURVE)
        (fresh / SUMMARY).write_text(json.dumps(training, indent=1) + "\n", "utf-8")
        (fresh / CARD).write_text(card, "utf-8")
        _inspect(fresh, run / POLICY, training["weights_digest"])
        replace_directory(fresh, destination)
    except OSError as error:
        raise TraceError(f"{run}: cannot be copied to {destination} ({error}); check both places") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return True


def _card(run: Path, training: dict[str, Any], evaluation: Path | None) -> str:
    """The model card of `run`, with the results in `evaluation` if they are of its weights."""
    results = None if evaluation is None else _read(evaluation)
    try:
        if results is not None:
            evaluated = {entry["policy"]["weights_digest"] for entry in results["configurations"]}
            if training["weights_digest"] not in evaluated:
                raise TraceError(f"{evaluation}: is of other weights than {run}; evaluate {run / POLICY}")
            if BLIND not in {entry["policy"]["name"] for entry in results["configurations"]}:
                raise TraceError(f"{evaluation}: has no row of a blind policy, without which rates say little; add one")
            if results["scenes"]["scene"] != str(training["scene_version"]):
                raise TraceError(
                    f"{evaluation}: in scenes of version {results['scenes']['scene']}, {run} was trained in those of "
                    f"version {training['scene_version']}; evaluate it there"
                )
        return model_card(training, results)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TraceError(
            f"{run / SUMMARY if evaluation is None else evaluation}: lacks what a card needs ({error!r}); give "
            "the folder of a training run, and what `evaluate --json` printed"
        ) from error


def _to_be_replaced(destination: Path, training: dict[str, Any], *, evaluated: bool) -> bool:
    """Whether what lies in `destination` gives way to what `training` tells of."""
    if not all((destination / name).is_file() for name in (SUMMARY, _WEIGHTS)):
        raise ConfigError(
            f"{destination}: is there and holds no published policy, so it is left alone; give a published policy or a "
            "new path"
        )
    there = read_papers(destination)
    for kind in ("blind", "tasks"):  # in the same order: the frames of the held-out loss hang on it
        old, new = (papers["plan"][kind] for papers in (there, training))
        if old != new:
            raise ConfigError(f"{destination}: holds a policy with {kind} {old}, and not {new}; publish elsewhere")
    if there["weights_digest"] == training["weights_digest"]:
        return evaluated  # the card there may have results, and this one would have none
    old, new = (papers.get("scene_version", 0) for papers in (there, training))
    if old != new:
        return bool(new > old)
    return bool(training["held_out"]["noise"] < there["held_out"].get("noise", math.inf))


def _inspect(copy: Path, origin: Path, digest: str) -> None:
    """Raise TraceError unless the policy in `copy`, taken from `origin`, has weights `digest` and may be shipped."""
    if load_policy_directory(copy).identity.weights_digest != digest:
        raise TraceError(
            f"{origin}: has other weights than {SUMMARY} beside it tells of; repeat `tracekit train` there"
        )
    if (copy / _WEIGHTS).stat().st_size > _LARGEST_BYTES:
        raise TraceError(f"{origin}: more than the {_LARGEST_BYTES} bytes a wheel may carry; train a smaller policy")


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TraceError(f"{path}: cannot be read ({error}); give what `evaluate --json` printed") from error
    if not isinstance(data, dict):
        raise TraceError(f"{path}: not a JSON object; give what `evaluate --json` printed")
    return data


def _main() -> None:
    parser = argparse.ArgumentParser(prog="publish", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a training run")
    parser.add_argument("destination", type=Path, help="directory of the published policy")
    parser.add_argument("evaluation", type=Path, nargs="?", help="what `tracekit evaluate --json` printed of it")
    given = parser.parse_args()
    try:
        better = publish(given.run, given.destination, given.evaluation)
    except TracekitError as error:
        sys.stderr.write(f"publish: {error}\n")
        sys.exit(2)
    sys.stdout.write("published\n" if better else "what is there is not worse: left as it is\n")


if __name__ == "__main__":
    _main()
