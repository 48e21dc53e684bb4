"""A policy -> a run directory laid out as the public MLA release writes and reads it; the inverse of `release`."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tracekit.errors import PolicyError
from tracekit.model.config import MLAConfig, Normalisation
from tracekit.model.policy import MLA
from tracekit.model.release import SIDECAR, STATISTICS, ReleaseOptions, load_release

__all__ = ["save_release"]

CHECKPOINT = "step-000000-epoch-00-loss=0.0000.pt"


def save_release(policy: MLA, directory: Path) -> None:
    """Write `policy` (float32, not frozen) into a new run `directory` that `load_release` and the release read.

    What tensors do not say goes into a sidecar beside them; the release takes it from its own code. Tensors that feed
    no action are not there to be written: the release starts them anew. Raises PolicyError if the directory exists or
    cannot be written, and for a policy that the release has no form for (its settings are named).
    """
    if directory.exists():
        raise PolicyError(f"{directory}: exists already; choose another directory")
    if policy.precision.dtype != "float32":
        raise PolicyError(f"policy {policy.config.name!r} runs in {policy.precision.dtype}; save the float32 policy")
    if policy.config.image_position:
        raise _no_form(policy.config, ["image_position"])
    partial = directory.with_name(f"{directory.name}.partial-{os.getpid()}")
    try:
        (partial / "checkpoints").mkdir(parents=True)
        torch.save({"model": _modules(policy)}, partial / "checkpoints" / CHECKPOINT)
        policy.tokenizer.save(partial)
        for name, data in _files(policy.config).items():
            (partial / name).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        _check(policy, partial)
        partial.rename(directory)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError on a full disk
        raise PolicyError(f"{directory}: cannot be written ({error}); choose a place with room and access") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _modules(policy: MLA) -> dict[str, dict[str, Tensor]]:
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in policy.state_dict().items():
        module, _, key = name.partition(".")
        modules.setdefault(module, {})[key] = tensor.detach().cpu().contiguous()
    return modules


def _files(config: MLAConfig) -> dict[str, Any]:
    sidecar = {f.name: getattr(config, f.name) for f in fields(ReleaseOptions) if hasattr(config, f.name)}
    statistics = {"action": _statistics(config.action), "proprio": _statistics(config.state)}
    return {
        "config.json": {"vla": {"future_action_window_size": config.action_window - 1}},
        STATISTICS: {config.name: statistics},
        SIDECAR: sidecar,
    }


def _statistics(given: Normalisation) -> dict[str, list[float] | list[bool]]:
    return {"q01": list(given.q01), "q99": list(given.q99), "mask": list(given.mask)}


def _check(policy: MLA, written: Path) -> None:
    """Read the run back: what comes out otherwise has no form there."""
    read, _ = load_release(written)
    ours, theirs = policy.config, replace(read.config, name=policy.config.name)
    lost = [f.name for f in fields(ours) if getattr(ours, f.name) != getattr(theirs, f.name)]
    if lost:
        raise _no_form(ours, lost)
    if read.identity.weights_digest != policy.identity.weights_digest:
        raise PolicyError(f"{written.name}: reads back as other weights than were written; check the disk")


def _no_form(config: MLAConfig, settings: list[str]) -> PolicyError:
    values = ", ".join(f"{name} = {getattr(config, name)}" for name in settings)
    return PolicyError(
        f"policy {config.name!r} has no form in the release: it cannot say {values}; only policies of its own shape "
        "can be written as its runs"
    )
