"""Writes what a controller sees, decides and does into a trace: an episode is a transaction, a control step a record.

The recorder draws no random number and changes nothing in the forward pass: with it or without it, actions are bitwise
the same.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from tracekit import keys
from tracekit._fields import plain
from tracekit.actions import ActionSpec
from tracekit.camera import Camera
from tracekit.capture import CaptureSpec
from tracekit.config import Configuration
from tracekit.engine import StepDraws, StepOptions, StepResult, execution_threads
from tracekit.errors import TraceError
from tracekit.fingerprint import environment_fingerprint
from tracekit.observation import Observation
from tracekit.policy import PolicyIdentity
from tracekit.pruning import Reduction
from tracekit.records import Field, field, step_fields
from tracekit.store import EpisodeInfo, EpisodeWriter, TraceWriter

__all__ = ["EpisodeRecording", "Recordable", "Recorder", "StepRecording"]

MATCH_ON_APPEND = ("policy", "capture", "execution", "action_spec", "configuration", "driver", "source")
"""Root attributes that must be equal before episodes are added to an existing trace."""


class RecordedPolicy(Protocol):
    """What a trace says of the policy."""

    @property
    def identity(self) -> PolicyIdentity:
        """Name and digests."""
        ...

    @property
    def action_spec(self) -> ActionSpec:
        """Meaning of actions and states."""
        ...


class Recordable(Protocol):
    """What can be recorded: `tracekit.engine.Controller`, or the run of a foreign policy (`recorders.attach`)."""

    options: StepOptions

    @property
    def policy(self) -> RecordedPolicy:
        """Whose actions they are."""
        ...

    @property
    def config(self) -> Configuration:
        """How it is run."""
        ...

    @property
    def last(self) -> StepResult | None:
        """The last step's result; None at the start of an episode."""
        ...

    @property
    def last_draws(self) -> StepDraws | None:
        """The last step's random inputs."""
        ...

    @property
    def steps(self) -> int:
        """Control steps taken in this episode."""
        ...

    def reset(self, episode_uid: int) -> None:
        """Start an episode."""
        ...


class Recorder:
    """Records the steps that `controller` takes. Use as a context manager around `episode(...)` blocks.

    `driver`: who moved the arm: `policy` or, in a shadow run, for example `expert`, and then the recorded policy
    actions were computed and not executed. `source`: what the observations came from (simulator and version, robot). An
    existing trace is appended to when everything in `MATCH_ON_APPEND` is equal; raises TraceError otherwise.
    """

    def __init__(
        self,
        path: str | Path,
        controller: Recordable,
        capture: CaptureSpec | None = None,
        *,
        driver: str = "policy",
        source: Mapping[str, Any] | None = None,
    ) -> None:
        self._path = Path(path)
        self._controller = controller
        self._capture = capture or CaptureSpec.default()
        self._driver = driver
        self._source = dict(source or {})
        self._reduction = Reduction()
        self._writer: TraceWriter | None = None

    def __enter__(self) -> Self:
        attributes = self._attributes()
        if self._path.exists():
            writer = TraceWriter.append(self._path, attributes, match=MATCH_ON_APPEND)
        else:
            writer = TraceWriter.create(self._path, attributes)
        self._writer = writer.__enter__()
        self._options_before = self._controller.options
        self._controller.options = StepOptions(capture=self._capture, encoded="rows")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._controller.options = self._options_before
        if self._writer is not None:
            self._writer.__exit__(kind, error, trace)
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
        """One episode: committed when the block ends, invisible to readers if it raises.

        `uid`: what random draws are keyed by; drawn from the system where none is given. `cameras`: models of fixed
        cameras by view; by default those of the first observation. Raises TraceError if `episode_id` is in the trace
        already.
        """
        writer = self._open_writer()
        uid = secrets.randbits(64) if uid is None else uid
        name = episode_id or f"{task}-{seed if seed is not None else f'{uid:016x}'}"
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
        self._controller.reset(uid)
        with ExitStack() as transaction:
            recording = EpisodeRecording(
                transaction, writer, info, self._controller, self._capture, self._reduction, cameras
            )
            yield recording
            recording.commit()

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


class EpisodeRecording:
    """The episode being written. Set `success` before the block ends, if it is known."""

    def __init__(
        self,
        transaction: ExitStack,
        writer: TraceWriter,
        info: EpisodeInfo,
        controller: Recordable,
        capture: CaptureSpec,
        reduction: Reduction,
        cameras: Mapping[str, Camera] | None,
    ) -> None:
        self.success: bool | None = None
        self._transaction, self._writer, self._info = transaction, writer, info
        self._controller, self._capture, self._reduction = controller, capture, reduction
        self._cameras = cameras
        self._phases: list[str] = []
        self._episode: EpisodeWriter | None = None

    @contextmanager
    def step(self, observation: Observation, phase: str | None = None) -> Iterator[StepRecording]:
        """One control step: inside the block, call the controller on `observation`, set `action` to what was executed.

        Raises TraceError if the controller took no step, or more than one, or if the instruction or a camera of
        `observation` is not the episode's: a replay has them from the episode.
        """
        self._check(observation)
        before = self._controller.steps
        recording = StepRecording()
        yield recording
        result, draws = self._controller.last, self._controller.last_draws
        if result is None or draws is None or self._controller.steps != before + 1:
            raise TraceError(
                f"episode {self._info.id!r}: {self._controller.steps - before} control steps were taken inside one "
                "recorded step; call the controller exactly once on the observation"
            )
        fields = step_fields(
            observation, result, draws, self._capture, self._controller.policy.action_spec, self._reduction
        )
        spec = self._controller.policy.action_spec
        if recording.action is not None:
            executed = np.atleast_2d(np.asarray(recording.action, np.float64))
            fields[keys.ACTION_EXECUTED] = field(
                executed, "float64", "chunk action", "per dimension", optional=True, names=spec.names, units=spec.units
            )
        if phase is not None:
            if phase not in self._phases:
                self._phases.append(phase)
            fields[keys.PHASE] = field(
                self._phases.index(phase), "int8", unit="index into the episode's `phases`", optional=True
            )
        self._append(fields, list(observation.images), result.layout.to_json())

    def commit(self) -> None:
        """Make the episode visible. An episode without a step is refused."""
        if self._episode is None:
            raise TraceError(f"episode {self._info.id!r} has no step; nothing was recorded")
        self._episode.finish(success=self.success, attributes={"phases": self._phases})

    def _check(self, observation: Observation) -> None:
        if observation.instruction != self._info.instruction:
            raise TraceError(
                f"episode {self._info.id!r}: its instruction is {self._info.instruction!r}, the observation's is "
                f"{observation.instruction!r}; give the episode the instruction that the policy is given"
            )
        if self._cameras is None:
            self._cameras = dict(observation.cameras)
        if observation.cameras and dict(observation.cameras) != dict(self._cameras):
            raise TraceError(
                f"episode {self._info.id!r}: the observation's camera models are not those of the episode; a trace has "
                "models of fixed cameras only: leave out those of views that move"
            )

    def _append(self, fields: Mapping[str, Field], views: list[str], layout: list[list[Any]]) -> None:
        if self._episode is None:
            schema = {key: item.spec for key, item in fields.items()}
            cameras = {view: camera.to_json() for view, camera in (self._cameras or {}).items()}
            about = {**self._info.attributes, "cameras": cameras, "views": views, "layout": layout}
            info = replace(self._info, attributes=about)
            self._episode = self._transaction.enter_context(self._writer.episode(info, schema))
        self._episode.append({key: item.value for key, item in fields.items()})


class StepRecording:
    """What the caller says about one step: `action`, (A,) or (T, A) float64, as it was executed."""

    def __init__(self) -> None:
        self.action: npt.NDArray[np.floating[Any]] | None = None
