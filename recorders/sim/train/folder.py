"""The folder of a training run: one process at a time trains in it, and every file in it is replaced whole."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from recorders.sim.train.papers import SUMMARY
from tracekit.errors import ConfigError, PolicyError, TraceError

__all__ = [
    "CARD",
    "CURVE",
    "POLICY",
    "STATE",
    "cut_curve",
    "held_folder",
    "read_state",
    "refuse_foreign",
    "replace_directory",
    "replace_text",
    "short",
    "write_state",
]

CARD = "MODEL_CARD.md"
CURVE = "curve.jsonl"
POLICY = "policy"
STATE = "state.pt"

_PARTS = ("plan", "trainer", "seconds", "held_out", "demonstrations")
"""What a state holds; see `write_state`."""


@contextmanager
def held_folder(out: Path) -> Iterator[None]:
    """Make `out`, keep other trainings out of it, and remove what a killed one left half-written.

    Raises ConfigError while another process trains in it.
    """
    out.mkdir(parents=True, exist_ok=True)
    handle = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{out}: another training is at work in it; wait for its end, or give --out another folder"
            ) from None
        except OSError:  # a file system without locks
            pass
        for name in (CARD, CURVE, POLICY, STATE, SUMMARY):
            for left in out.glob(f".{name}.*"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield
    finally:
        os.close(handle)


def read_state(out: Path) -> dict[str, Any] | None:
    """What `write_state` left in `out`, None without; raises PolicyError for a file that is something else."""
    path = out / STATE
    if not path.exists():
        return None
    try:
        saved: dict[str, Any] = torch.load(path, weights_only=True)
        return {name: saved[name] for name in _PARTS}
    except Exception as error:  # a damaged pickle raises nearly anything
        raise PolicyError(f"{path}: not the state of a training ({short(error)}); give --out another folder") from error


def refuse_foreign(out: Path) -> None:
    """Raise ConfigError where `out`, without a state, holds what a training writes after its first state.

    It is somebody else's then: a published policy, a project's own `policy`. A curve alone may be of a run that was
    killed before it had a state; `cut_curve` looks into it.
    """
    there = [name for name in (CARD, POLICY, SUMMARY) if os.path.lexists(out / name)]
    if there:
        raise ConfigError(
            f"{out}: holds {', '.join(there)} and no {STATE}, so no training to go on with; give --out another folder"
        )


def write_state(out: Path, state: dict[str, Any]) -> None:
    """Keep `state` for `read_state`; raises TraceError where it does not fit on the disk."""
    partial = _partial(out / STATE)
    try:
        torch.save(state, partial)
        partial.rename(out / STATE)
    except (OSError, RuntimeError) as error:
        raise TraceError(f"{out / STATE}: cannot be written ({short(error)}); make room and go on") from error
    finally:
        partial.unlink(missing_ok=True)


def cut_curve(out: Path, step: int) -> None:
    """Remove what comes after `step` from the learning curve: it was lost with the process and is run again.

    A last line that was cut off is of such a step. Raises TraceError for any other line that is no entry.
    """
    path = out / CURVE
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    kept = []
    for number, line in enumerate(lines, start=1):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line.decode())
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines) or line.endswith(b"\n"):
                raise TraceError(f"{path}: line {number} is no entry ({error}); mend or remove the file") from error
    replace_text(path, "".join(kept))


def replace_text(path: Path, text: str) -> None:
    """Write `path` whole or not at all; raises TraceError where that fails."""
    partial = _partial(path)
    try:
        partial.write_text(text, "utf-8")
        partial.rename(path)
    except OSError as error:
        raise TraceError(f"{path}: cannot be written ({error}); make room and go on") from error
    finally:
        partial.unlink(missing_ok=True)


def replace_directory(fresh: Path, destination: Path) -> None:
    """Put `fresh` where `destination` is, if it is; what was there comes back where that fails."""
    aside = destination.with_name(f".{destination.name}.{os.getpid()}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if destination.exists():
        destination.rename(aside)
    try:
        fresh.rename(destination)
    except OSError:
        if aside.exists():
            aside.rename(destination)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def short(error: Exception) -> str:
    """The message of `error` in one line, of which torch's have many."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")
