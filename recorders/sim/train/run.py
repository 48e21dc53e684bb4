"""A training run in a folder: `state.pt` to go on from, `curve.jsonl`, and the policy that a user would load."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from recorders.sim.blind import is_blind
from recorders.sim.cloud import POINTS
from recorders.sim.environment import SCENE_VERSION
from recorders.sim.processes import MOST_PROCESSES
from recorders.sim.train.batches import Frames
from recorders.sim.train.card import model_card
from recorders.sim.train.demonstrations import demonstrations_digest, record_demonstrations
from recorders.sim.train.folder import (
    CARD,
    CURVE,
    POLICY,
    STATE,
    cut_curve,
    held_folder,
    read_state,
    refuse_foreign,
    replace_directory,
    replace_text,
    short,
    write_state,
)
from recorders.sim.train.fresh import fresh_policy
from recorders.sim.train.interrupt import interrupts_wait
from recorders.sim.train.papers import SUMMARY, papers_of
from recorders.sim.train.plan import TrainingPlan
from recorders.sim.train.trainer import Trainer, held_out_losses
from tracekit.actions import ActionSpec
from tracekit.errors import ConfigError, PolicyError
from tracekit.model import MLA, load_policy_directory, save_policy

__all__ = ["TrainingSummary", "train"]

_SAVE_SECONDS = 300.0
_EVERY_LOSS_UNTIL, _LOSS_EVERY, _HELD_OUT_EVERY = 200, 20, 250
_HELD_OUT_FRAMES = 64


@dataclass(frozen=True, slots=True)
class TrainingSummary:
    """How far a run has come. `seconds`: of training, over all sessions; `held_out`: last losses on unseen scenes.

    `scene_version`: of the simulator that the demonstrations come from; losses compare within one version alone.
    `before`: the runs that the weights come from, oldest first, each as its own `to_json` without `before`.
    """

    plan: TrainingPlan
    step: int
    seconds: float
    frames: int
    failed_episodes: int
    demonstrations_digest: str
    scene_version: int
    threads: int
    parameters: int
    weights_digest: str
    held_out: dict[str, float]
    before: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The object that `train --json` prints and `training.json` holds."""
        values = {name: getattr(self, name) for name in self.__slots__ if name not in {"plan", "before"}}
        return {"plan": self.plan.to_json(), **values, "before": list(self.before)}


def train(
    out: Path,
    data: Path,
    plan: TrainingPlan,
    *,
    resume: Path | None = None,
    hours: float | None = None,
    threads: int = 1,
    policy: MLA | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> TrainingSummary:
    """Record what demonstrations of `plan` are missing in `data`, then train into the folder `out`.

    A folder that holds an unfinished run of the same plan is taken up where it stopped, with the same losses as if it
    had not. `resume`: a policy directory to start from, with a fresh optimiser. `hours`: stop after so much time of
    training (recording does not count), to be taken up later. `policy`: what to train instead of a fresh reference
    policy.

    Raises ConfigError for another plan's folder or an unusable option, PolicyError and TraceError for damaged input.
    """
    if not 1 <= threads <= MOST_PROCESSES:
        raise ConfigError(f"--threads {threads}: give 1 to {MOST_PROCESSES}")
    if not (hours is None or (math.isfinite(hours) and hours > 0)):
        raise ConfigError(f"--hours {hours}: give a positive number")
    if data.exists() and not data.is_dir():
        raise ConfigError(f"--data {data}: is a file; give a folder, or a new path to record demonstrations into")
    start_from = policy or fresh_policy(plan)
    before: tuple[dict[str, Any], ...] = ()
    if resume is not None:
        start_from = load_policy_directory(resume)
        if is_blind(start_from.identity) != plan.blind:
            kind, remedy = ("a policy with eyes", "leave out") if plan.blind else ("a blind policy", "add")
            raise ConfigError(f"{resume}: holds {kind}; {remedy} --blind, or start from another")
        plan = replace(plan, resumed_from=start_from.identity.weights_digest)
        before = _earlier_runs(resume, start_from.identity.weights_digest)
    if start_from.action_spec != ActionSpec():
        raise ConfigError(
            f"policy {start_from.config.name!r} has other actions than the demonstrations; train one with the "
            f"simulator's {ActionSpec()}"
        )
    if start_from.config.points != POINTS:
        raise PolicyError(
            f"policy {start_from.config.name!r} takes {start_from.config.points} points, demonstrations have {POINTS}, "
            "as the simulator's observations do; start from another policy"
        )
    start_from.trained = True
    with held_folder(out):
        saved = read_state(out)
        if saved is None:
            refuse_foreign(out)
        else:
            _refuse_another(out, plan, saved["plan"])
        record_demonstrations(data, [*plan.demonstrations, *plan.held_out], threads, progress)
        digest = demonstrations_digest(data, plan.demonstrations)
        if saved is not None and saved["demonstrations"] != digest:
            raise ConfigError(f"{out}: began with other demonstrations than those in {data}; give --out another folder")
        with _one_thread():
            trainer = Trainer(start_from, Frames(data, plan.demonstrations), plan, threads)
            run = _Run(out, trainer, Frames(data, plan.held_out), digest, before)
            if saved is not None:
                run.take_up(saved)
            return run.finish(hours, progress)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Leave the threads to the trainer: torch's own are one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _refuse_another(out: Path, plan: TrainingPlan, found: Any) -> None:
    wanted = plan.to_json()
    changed = sorted(key for key in wanted if not isinstance(found, dict) or wanted[key] != found.get(key))
    if changed:
        raise ConfigError(
            f"{out}: holds a run with another {', '.join(changed)}; repeat its options to go on, or give --out another "
            "folder"
        )


def _earlier_runs(policy: Path, digest: str) -> tuple[dict[str, Any], ...]:
    """What is known of the runs that made the weights `digest` in `policy`: a run's own policy, or a published one."""
    papers = papers_of(policy, digest)
    if papers is None:
        return ()
    return (*papers.get("before", ()), {key: value for key, value in papers.items() if key != "before"})


class _Run:
    def __init__(
        self, out: Path, trainer: Trainer, held_out: Frames, digest: str, before: tuple[dict[str, Any], ...]
    ) -> None:
        self._out, self._trainer, self._held_out, self._digest = out, trainer, held_out, digest
        self._before = before
        self._seconds, self._losses = 0.0, {}  # type: float, dict[str, float]

    def take_up(self, saved: dict[str, Any]) -> None:
        try:
            self._trainer.restore(saved["trainer"])
            self._seconds, self._losses = float(saved["seconds"]), dict(saved["held_out"])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise PolicyError(
                f"{self._out / STATE}: does not fit what is trained ({short(error)}); give --out another folder"
            ) from error
        cut_curve(self._out, self._trainer.step)

    def finish(self, hours: float | None, progress: Callable[[str, int, int], None] | None) -> TrainingSummary:
        """Take the steps that are left. KeyboardInterrupt comes after the step it fell into, with all steps kept."""
        trainer, plan = self._trainer, self._trainer.plan
        began, saved_at, passed = time.perf_counter(), time.perf_counter(), self._seconds
        if trainer.step == 0:
            cut_curve(self._out, 0)
        with interrupts_wait() as interrupted:
            with (self._out / CURVE).open("a", encoding="utf-8") as curve:
                for losses in self._steps():
                    now = time.perf_counter()
                    self._seconds = passed + now - began
                    entry = self._entry(losses)
                    if entry is not None:
                        curve.write(json.dumps(entry) + "\n")
                    if progress is not None:
                        progress("training steps", trainer.step, plan.steps)
                    if now - saved_at > _SAVE_SECONDS:
                        curve.flush()
                        self._save()
                        saved_at = now
                    if interrupted() or (hours is not None and self._seconds - passed > hours * 3600):
                        break
            summary = self._save()
        if interrupted():
            raise KeyboardInterrupt
        return summary

    def _steps(self) -> Iterator[dict[str, float]]:
        """The steps that are left; those before one that fails are kept."""
        try:
            yield from self._trainer.run()
        except PolicyError:
            if self._trainer.step > 0:
                self._save()
            raise

    def _entry(self, losses: dict[str, float]) -> dict[str, Any] | None:
        """The line that the last step has in the learning curve, if it has one."""
        trainer, step = self._trainer, self._trainer.step
        entry: dict[str, Any] = {"step": step, "seconds": round(self._seconds, 1), **losses}
        if step % _HELD_OUT_EVERY == 0 or step == trainer.plan.steps:
            self._losses = held_out_losses(
                trainer.average, trainer.heads, self._held_out, trainer.plan, _HELD_OUT_FRAMES
            )
            entry["held_out"] = self._losses
        if step <= _EVERY_LOSS_UNTIL or step % _LOSS_EVERY == 0 or "held_out" in entry:
            return entry
        return None

    def _save(self) -> TrainingSummary:
        """State, policy and papers, each replaced whole and in this order.

        A reader in between can tell: papers name the digest of their weights, as the policy does. A run that was killed
        there mends it when it is taken up, finished or not.
        """
        trainer = self._trainer
        state = {
            "plan": trainer.plan.to_json(),
            "trainer": trainer.state(),
            "seconds": self._seconds,
            "held_out": self._losses,
            "demonstrations": self._digest,
        }
        write_state(self._out, state)
        fresh = self._out / f".{POLICY}.{os.getpid()}"
        save_policy(trainer.average, fresh)
        replace_directory(fresh, self._out / POLICY)
        identity = trainer.average.identity
        summary = TrainingSummary(
            plan=trainer.plan,
            step=trainer.step,
            seconds=self._seconds,
            frames=len(trainer.frames),
            failed_episodes=trainer.frames.failed,
            demonstrations_digest=self._digest,
            scene_version=SCENE_VERSION,
            threads=trainer.threads,
            parameters=identity.parameters,
            weights_digest=identity.weights_digest,
            held_out=self._losses,
            before=self._before,
        )
        replace_text(self._out / SUMMARY, json.dumps(summary.to_json(), indent=1) + "\n")
        replace_text(self._out / CARD, model_card(summary.to_json(), None))
        return summary
