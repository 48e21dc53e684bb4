"""The episode that is being recorded: it takes steps in the user's loop and writes them in a thread of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from recorders.handover import Handover, Overflow
from recorders.ledger import Ledger, SensorClocks
from recorders.recordable import Recordable
from tracekit import keys
from tracekit.camera import Camera
from tracekit.capture import CaptureSpec
from tracekit.engine import StepDraws, StepResult
from tracekit.errors import TraceError
from tracekit.observation import Observation
from tracekit.pruned_records import pruned_fields
from tracekit.pruning import Reduction
from tracekit.quantities import described
from tracekit.records import Field, field, step_fields
from tracekit.store import EpisodeInfo, EpisodeWriter, TraceWriter, with_measured_codec

__all__ = ["EpisodeRecording", "StepRecording"]

LONGEST = 200
"""Characters kept of what ended an episode."""


class EpisodeRecording:
    """The episode being written. Set `success` before the block ends, if it is known."""

    def __init__(
        self,
        writer: TraceWriter,
        info: EpisodeInfo,
        controller: Recordable,
        capture: CaptureSpec,
        reduction: Reduction,
        cameras: Mapping[str, Camera] | None,
        queue_steps: int,
        overflow: Overflow,
    ) -> None:
        self.success: bool | None = None
        self._writer, self._info = writer, info
        self._controller, self._capture, self._reduction = controller, capture, reduction
        self._cameras = cameras
        self._phases: list[str] = []
        self._ledger, self._clocks = Ledger(), SensorClocks()
        self._queue = {"steps": queue_steps, "overflow": overflow}
        self._form: dict[str, tuple[int, ...]] | None = None
        self._executed_shape: tuple[int, ...] | None = None
        self._taken = 0
        self._state: Literal["between steps", "in a step", "ended"] = "between steps"
        self._is_whole = False
        self._clock = {"monotonic_ns": time.monotonic_ns(), "unix_ns": time.time_ns()}
        self._episode: EpisodeWriter | None = None
        self._handover: Handover[_Step] = Handover(self._write, queue_steps, overflow)

    @contextmanager
    def step(self, observation: Observation, phase: str | None = None) -> Iterator[StepRecording]:
        """One control step: inside the block, call the controller on `observation`, set `action` to what was executed.

        What `observation` is now and what the controller answers is recorded, whatever the block writes into these
        arrays. Raises TraceError if the controller took no step, or more than one; before the block, if this is inside
        another step or behind the episode's end, if the instruction or a camera of `observation` is not the episode's
        (a replay has them from the episode), or if its arrays are not those of the first step. What writing an earlier
        step raised is raised here.
        """
        self._check(observation)
        before = self._controller.steps
        start = time.perf_counter_ns()
        observation = _copied(observation)
        copied_ns = time.perf_counter_ns() - start
        recording = StepRecording(self._info.id, self._executed_shape)
        began_ns = time.monotonic_ns()
        self._state = "in a step"
        try:
            yield recording
        finally:
            self._state = "between steps"
        result, draws = self._controller.last, self._controller.last_draws
        if result is None or draws is None or self._controller.steps != before + 1:
            raise TraceError(
                f"episode {self._info.id!r}: {self._controller.steps - before} control steps were taken inside one "
                "recorded step; call the controller exactly once on the observation"
            )
        self._taken += 1
        executed = None if recording.action is None else np.atleast_2d(recording.action)
        self._executed_shape = (result.action if executed is None else executed).shape
        self._clocks.see(observation)
        waited = self._handover.room()
        if waited is None:
            return
        step = _Step(
            number=self._controller.steps,
            observation=observation,
            result=result,
            draws=draws,
            executed=executed,
            executed_shape=self._executed_shape,
            phase=self._phase_index(phase),
            began_ns=began_ns,
            acted_ns=recording.time_ns,
            waited_ns=waited,
            handover_ns=copied_ns,
        )
        self._handover.put(step)

    def commit(self) -> None:
        """Write what waits and make the episode visible. An episode without a step is refused.

        Raises what the writer raised; `keep` then saves what can be saved.
        """
        self._is_whole, self._state = True, "ended"
        self._handover.finish()
        if self._episode is None:
            raise TraceError(f"episode {self._info.id!r} has no step; nothing was recorded")
        self._episode.finish(self._outcome(), self._about())

    def keep(self, error: BaseException) -> None:
        """Because of `error`, commit the steps that were taken, as a truncated episode; without any, nothing is kept.

        What cannot be committed stays in the journal's `running` folder for `repair`; nothing is deleted. So does the
        episode if this is interrupted in turn; the steps that still wait for the writer are then lost, as they are
        where the disk refuses one before them (a note on `error` counts them).
        """
        self._state = "ended"
        try:
            self._handover.close()
            if self._handover.lost:
                error.add_note(f"later steps that still waited for the writer and are lost: {self._handover.lost}")
            if self._episode is not None and self._episode.is_open:
                self._commit_after(self._episode, error)
        except Exception as failed:  # noqa: BLE001  # what ended the episode is what must be heard of
            error.add_note(str(failed))
        finally:
            self._handover.abandon()
            if self._episode is not None:
                self._episode.leave()

    def _commit_after(self, episode: EpisodeWriter, error: BaseException) -> None:
        if self._is_whole and not self._handover.failed:  # the block had ended, and all of it is written now
            episode.finish(self._outcome(), self._about())
            return
        ended_by = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST]
        # how it would have ended is not known, but a success that was seen is one
        episode.finish(self._outcome() or None, {**self._about(), "ended_by": ended_by}, truncated=True)

    def _outcome(self) -> bool | None:
        return None if self.success is None else bool(self.success)

    def _about(self) -> dict[str, Any]:
        """The episode's attributes."""
        return {
            "clock": self._clock,
            "phases": self._phases,
            "steps_taken": self._taken,
            "dropped_steps": self._handover.dropped,
            "queue": {
                **self._queue,
                "longest": self._handover.longest,
                "blocked_ns": self._handover.blocked_ns,
            },
            **self._ledger.to_json(),
            **self._clocks.to_json(),
        }

    def _check(self, observation: Observation) -> None:
        if self._state != "between steps":
            place = "inside another one" if self._state == "in a step" else "after the episode's block"
            raise TraceError(
                f"episode {self._info.id!r}: a step was begun {place}; take one step after the other inside the block"
            )
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
        form = _form(observation)
        if self._form is None:
            self._form = form
        if form != self._form:
            first = self._form
            name = min(name for name in form.keys() | first.keys() if form.get(name) != first.get(name))
            raise TraceError(
                f"episode {self._info.id!r}: {name} of the observation is {_shown(form.get(name))} in step "
                f"{self._controller.steps + 1} but {_shown(first.get(name))} in the first; give every step the same "
                "arrays and stamps"
            )

    def _phase_index(self, phase: str | None) -> int | None:
        if phase is None:
            return None
        if phase not in self._phases:
            self._phases.append(phase)
        return self._phases.index(phase)

    def _write(self, step: _Step) -> None:
        """Encode and append one step; runs in the writer's thread, and nothing else touches the store meanwhile."""
        start = time.perf_counter_ns()
        fields = step_fields(step.observation, step.result, step.draws, self._capture, self._reduction)
        fields[keys.STEP_NUMBER] = field(step.number, "int64")
        fields[keys.STEP_START_NS] = field(step.began_ns, "int64", optional=True, clock="monotonic")
        unset = np.zeros(step.executed_shape)
        fields[keys.ACTION_EXECUTED] = _given(step.executed, unset, "float64", "chunk action")
        fields[keys.ACTION_TIME_NS] = _given(step.acted_ns, 0, "int64", clock="monotonic")
        fields[keys.PHASE] = _given(step.phase, 0, "int32")
        if self._controller.config.kind != "none":
            fields |= pruned_fields(step.result, self._controller.config)
        self._ledger.inspect({key: item.value for key, item in fields.items() if item.value is not None})
        costs = {
            keys.QUEUE_WAIT_NS: step.waited_ns,
            keys.HANDOVER_NS: step.handover_ns,
            keys.ENCODE_NS: time.perf_counter_ns() - start,
        }
        fields |= {key: field(spent, "int64", optional=True) for key, spent in costs.items()}
        start = time.perf_counter_ns()
        self._append(fields, list(step.observation.images), step.result.layout.to_json())
        self._charge(step, costs[keys.ENCODE_NS], time.perf_counter_ns() - start)

    def _charge(self, step: _Step, encode_ns: int, append_ns: int) -> None:
        hooks = 0 if step.result.hooks_ns is None else int(step.result.hooks_ns.sum())
        for site, spent in (
            ("hooks", hooks),
            ("reduction", step.result.reduction_ns),
            ("queue_wait", step.waited_ns),
            ("handover", step.handover_ns),
            ("encode", encode_ns),
            ("append", append_ns),
        ):
            self._ledger.charge(site, spent)

    def _append(self, fields: Mapping[str, Field], views: list[str], layout: list[list[Any]]) -> None:
        if self._episode is None:
            spec = self._controller.policy.action_spec
            schema = {
                key: described(key, one.spec if one.value is None else with_measured_codec(one.spec, one.value), spec)
                for key, one in fields.items()
            }
            cameras = {view: camera.to_json() for view, camera in (self._cameras or {}).items()}
            about = {**self._info.attributes, "cameras": cameras, "views": views, "layout": layout}
            info = replace(self._info, attributes=about)
            self._episode = self._writer.episode(info, schema)
        self._episode.append({key: item.value for key, item in fields.items() if item.value is not None})


class StepRecording:
    """What the caller says about one step: `action`, (A,) or (T, A) float64, as it was executed."""

    def __init__(self, episode: str, shape: tuple[int, ...] | None) -> None:
        """`shape`: (T, A) of what was executed in the steps before, None in the first."""
        self._episode, self._shape = episode, shape
        self.time_ns: int | None = None
        """Monotonic time at which `action` was set last."""
        self._action: npt.NDArray[np.float64] | None = None

    @property
    def action(self) -> npt.NDArray[np.float64] | None:
        """A copy of what was executed. Set it when it is: the time is recorded as well.

        Raises TraceError for another shape than in the steps before.
        """
        return self._action

    @action.setter
    def action(self, action: npt.NDArray[np.floating[Any]] | None) -> None:
        time_ns = time.monotonic_ns()
        copy = None if action is None else np.array(action, np.float64)
        if copy is not None and self._shape not in {None, np.atleast_2d(copy).shape}:
            raise TraceError(
                f"episode {self._episode!r}: the executed action has shape {copy.shape}, those before {self._shape}; "
                "execute as many actions of every chunk"
            )
        self._action, self.time_ns = copy, None if copy is None else time_ns


@dataclass(slots=True)
class _Step:
    """One control step on its way to the writer, who alone reads it from here on."""

    number: int
    observation: Observation
    result: StepResult
    draws: StepDraws
    executed: npt.NDArray[np.float64] | None
    executed_shape: tuple[int, ...]
    phase: int | None
    began_ns: int
    acted_ns: int | None
    waited_ns: int
    handover_ns: int


def _given(value: npt.ArrayLike | None, like: npt.ArrayLike, dtype: str, axes: str = "", **attributes: Any) -> Field:
    """`value`, or only its declaration, taken from `like`: what the first step leaves out may come in a later one."""
    one = field(like if value is None else value, dtype, axes, optional=True, **attributes)
    return replace(one, value=None) if value is None else one


def _form(observation: Observation) -> dict[str, tuple[int, ...]]:
    """Name -> shape of everything that is stored of an observation."""
    seen = observation
    arrays: dict[str, Any] = {"the state": seen.state}
    if seen.points is not None:
        arrays["the point cloud"] = seen.points
    for name, views in (("image", seen.images), ("depth", seen.depth), ("segmentation", seen.segmentation)):
        arrays |= {f"{name} {view!r}": array for view, array in views.items()}
    return {name: np.shape(array) for name, array in arrays.items()} | {f"time stamp {s!r}": () for s in seen.time_ns}


def _shown(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else f"of shape {shape}" if shape else "there"


def _copied(observation: Observation) -> Observation:
    """The observation with arrays of its own: a sensor may write the next reading into the same buffers."""
    return replace(
        observation,
        images={view: image.copy() for view, image in observation.images.items()},
        points=None if observation.points is None else observation.points.copy(),
        state=np.array(observation.state),
        depth={view: depth.copy() for view, depth in observation.depth.items()},
        segmentation={view: classes.copy() for view, classes in observation.segmentation.items()},
        time_ns=dict(observation.time_ns),
    )
