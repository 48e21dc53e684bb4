"""Writes what a controller sees, decides and does into a trace: an episode is a transaction, a control step a record.

The recorder draws no random number and changes nothing in the forward pass: with it or without it, actions are bitwise
the same.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args

from recorders.episode import EpisodeRecording
from recorders.handover import Overflow
from recorders.recordable import Recordable
from tracekit._fields import plain
from tracekit.camera import Camera
from tracekit.capture import CaptureSpec
from tracekit.engine import StepOptions, execution_threads, needed_capture
from tracekit.errors import TraceError
from tracekit.fingerprint import environment_fingerprint
from tracekit.pruning import Reduction
from tracekit.store import EpisodeInfo, TraceWriter

__all__ = ["Recorder", "seeded_id"]

MATCH_ON_APPEND = ("policy", "capture", "execution", "action_spec", "configuration", "driver", "source")
"""Root attributes that must be equal before episodes are added to an existing trace."""

MOST_QUEUE_STEPS = 1024
"""What waits for the writer is held in memory, whole steps of it: more would hide that the disk is too slow."""


def seeded_id(task: str, seed: int) -> str:
    """The id of an episode of a task with seeds, where the caller gives none."""
    return f"{task}-{seed}"


class Recorder:
    """Records the steps that `controller` takes. Use as a context manager around `episode(...)` blocks.

    `driver`: who moved the arm: `policy` or, in a shadow run, for example `expert`, and then the recorded policy
    actions were computed and not executed. Steps are written by a thread of their own: up to `queue_steps` (1 to 1024)
    wait for it in memory, and when more come, `overflow` decides whether the loop waits (`block`) or the step is left
    out (`drop`; the episode counts them, and every stored step says which one it was). `source`: what the observations
    came from (simulator and version, robot). An existing trace is appended to when everything in `MATCH_ON_APPEND` is
    equal; raises TraceError otherwise.
    """

    def __init__(
        self,
        path: str | Path,
        controller: Recordable,
        capture: CaptureSpec | None = None,
        *,
        driver: str = "policy",
        source: Mapping[str, Any] | None = None,
        queue_steps: int = 8,
        overflow: Overflow = "block",
    ) -> None:
        fits = type(queue_steps) is int and 1 <= queue_steps <= MOST_QUEUE_STEPS
        if not fits or overflow not in get_args(Overflow):
            raise TraceError(
                f"queue_steps = {queue_steps!r}, overflow = {overflow!r}: give 1 to {MOST_QUEUE_STEPS} steps, which "
                f"wait in memory, and one of {', '.join(get_args(Overflow))}"
            )
        self._path = Path(path)
        self._controller = controller
        config = controller.config
        if config.reuse.kind == "skip_frame":
            raise TraceError(
                'reuse.kind = "skip_frame": every second step runs no forward pass, so there is nothing to record of '
                "it; record with another reuse, and replay with this one"
            )
        if config.execution.mode == "throughput":
            raise TraceError(
                'execution.mode = "throughput" computes steps of several replays together; record with mode = "latency"'
            )
        self._capture = capture or CaptureSpec.default()
        if config.method.observes != "none":  # what was decided from is stored, so that it can be decided from again
            self._capture = self._capture.merged(needed_capture(config))
        self._driver = driver
        self._source = dict(source or {})
        self._queue_steps, self._overflow = queue_steps, overflow
        self._reduction = config.pruner.reduction if config.method.reads == "scores" else Reduction()
        self._writer: TraceWriter | None = None
        self._running: str | None = None

    def __enter__(self) -> Self:
        attributes = self._attributes()
        self._options_before = self._controller.options
        self._controller.options = StepOptions(capture=self._capture, encoded="rows")
        try:
            if self._path.exists():
                self._writer = TraceWriter.append(self._path, attributes, match=MATCH_ON_APPEND)
            else:
                self._writer = TraceWriter.create(self._path, attributes)
        except BaseException:
            self._controller.options = self._options_before
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._controller.options = self._options_before
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    @contextmanager
    def episode(
        self,
        task: str,
        instruction: str,
        *,
        seed: int | None = None,
        uid: int | None = None,
        episode_id: str | None = None,
        cameras: Mapping[str, Camera] | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> Iterator[EpisodeRecording]:
        """One episode, committed when the block ends. Nothing that was recorded is lost if the block raises.

        Whatever is raised in it (KeyboardInterrupt too), the steps taken before are written and committed, marked
        `truncated`, with `ended_by` among the attributes and the success that was seen or None; without a step, there
        is no episode. What the disk refuses, or a second Ctrl-C cuts short, is left to `tracekit repair`.

        `uid`: what random draws are keyed by; drawn from the system where none is given. `cameras`: models of fixed
        cameras by view; by default those of the first observation. Raises TraceError, before the first step, if
        `episode_id` cannot be a name or is in the trace already, whole or cut off, if an attribute is no plain value,
        or if another episode is still open: a controller counts the steps of one.
        """
        writer = self._open_writer()
        if self._running is not None:
            raise TraceError(
                f"{self._path}: episode {self._running!r} is still being recorded; end its block before the next one"
            )
        uid = secrets.randbits(64) if uid is None else uid
        name = (f"{task}-{uid:016x}" if seed is None else seeded_id(task, seed)) if episode_id is None else episode_id
        if name in writer.episode_ids:
            raise TraceError(
                f"{self._path}: episode {name!r} is already there; record another seed or into another trace"
            )
        info = EpisodeInfo(
            id=name,
            task=task,
            instruction=instruction,
            seed=seed,
            uid=uid,
            attributes=dict(attributes or {}),
        )
        writer.check_new(info)
        self._controller.reset(uid)
        recording = EpisodeRecording(
            writer, info, self._controller, self._capture, self._reduction, cameras, self._queue_steps, self._overflow
        )
        self._running = name
        try:
            yield recording
            recording.commit()
        except BaseException as error:
            recording.keep(error)
            raise
        finally:
            self._running = None

    def _open_writer(self) -> TraceWriter:
        if self._writer is None:
            raise TraceError(f"{self._path}: the recorder is not open; use it in a with statement")
        return self._writer

    def _attributes(self) -> dict[str, Any]:
        policy, config = self._controller.policy, self._controller.config
        with execution_threads(config.execution):
            fingerprint = environment_fingerprint()
        return {
            "kind": "full" if config.kind == "none" else "pruned_live",
            "policy": policy.identity.to_json(),
            "action_spec": {**policy.action_spec.to_json(), "names": list(policy.action_spec.names)},
            "configuration": config.to_json(),
            "execution": {"reuse": plain(config.reuse), **plain(config.execution)},
            "capture": plain(self._capture),
            "reduction": {"digest": self._reduction.digest, **plain(self._reduction)},
            "driver": self._driver,
            "shadow": self._driver != "policy",
            "source": self._source,
            "fingerprint": fingerprint,
        }
