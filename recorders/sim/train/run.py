"""A training run in a folder: `state.pt` to go on from, `curve.jsonl`, and the policy that a user would load."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from recorders.sim.environment import SCENE_VERSION
from recorders.sim.train.batches import Frames
from recorders.sim.train.card import model_card
from recorders.sim.train.demonstrations import demonstrations_digest, record_demonstrations
from recorders.sim.train.fresh import fresh_policy
from recorders.sim.train.plan import TrainingPlan
from recorders.sim.train.trainer import Trainer, held_out_losses
from tracekit.actions import ActionSpec
from tracekit.errors import ConfigError, PolicyError
from tracekit.model import (
    MLA,
    load_policy_directory,
    save_policy,
)

__all__ = ["TrainingSummary", "train"]

CARD, CURVE, POLICY, STATE, SUMMARY = "MODEL_CARD.md", "curve.jsonl", "policy", "state.pt", "training.json"

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
    if threads < 1 or not (hours is None or (math.isfinite(hours) and hours > 0)):
        raise ConfigError(f"--threads {threads}, --hours {hours}: both must be positive numbers")
    start_from = policy or fresh_policy(plan)
    before: tuple[dict[str, Any], ...] = ()
    if resume is not None:
        start_from = load_policy_directory(resume)
        plan = replace(plan, resumed_from=start_from.identity.weights_digest)
        before = _earlier_runs(resume, start_from.identity.weights_digest)
    if start_from.action_spec != ActionSpec():
        raise ConfigError(
            f"policy {start_from.config.name!r} has other actions than the demonstrations; train one with the "
            f"simulator's {ActionSpec()}"
        )
    start_from.trained = True
    out.mkdir(parents=True, exist_ok=True)
    saved = _saved_state(out, plan)
    record_demonstrations(data, [*plan.demonstrations, *plan.held_out], threads, progress)
    digest = demonstrations_digest(data, plan.demonstrations)
    if saved is not None and saved["demonstrations"] != digest:
        raise ConfigError(f"{out}: began with other demonstrations than those in {data}; give --out another folder")
    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run = _Run(
            out,
            Trainer(start_from, Frames(data, plan.demonstrations), plan, threads),
            Frames(data, plan.held_out),
            digest,
            before,
        )
        if saved is not None:
            run.take_up(saved)
        return run.finish(hours, progress)
    finally:
        torch.set_num_threads(threads_before)


def _saved_state(out: Path, plan: TrainingPlan) -> dict[str, Any] | None:
    """The state that a run of `plan` left in `out`, if any."""
    path = out / STATE
    if not path.exists():
        return None
    try:
        saved: dict[str, Any] = torch.load(path, weights_only=True)
        wanted, found = plan.to_json(), saved["plan"]
    except (OSError, RuntimeError, KeyError, EOFError, ValueError) as error:
        raise PolicyError(f"{path}: cannot be read ({error}); remove the folder and train anew") from error
    changed = sorted(key for key in wanted if wanted[key] != found.get(key))
    if changed:
        raise ConfigError(
            f"{out}: holds a run with another {', '.join(changed)}; repeat its options to go on, or give --out another "
            "folder"
        )
    return saved


def _earlier_runs(policy: Path, digest: str) -> tuple[dict[str, Any], ...]:
    """What is known of the runs that made the weights `digest` in `policy`: a run's own policy, or a published one."""
    for path in (policy / SUMMARY, policy.parent / SUMMARY):
        if path.is_file():
            try:
                found: dict[str, Any] = json.loads(path.read_text("utf-8"))
                own = {key: value for key, value in found.items() if key != "before"}
                earlier = (*found.get("before", ()), own)
            except (OSError, ValueError, AttributeError) as error:
                raise PolicyError(f"{path}: cannot be read ({error}); mend or remove it") from error
            if found.get("weights_digest") == digest:
                return earlier
    return ()


class _Run:
    def __init__(
        self, out: Path, trainer: Trainer, held_out: Frames, digest: str, before: tuple[dict[str, Any], ...]
    ) -> None:
        self._out, self._trainer, self._held_out, self._digest = out, trainer, held_out, digest
        self._before = before
        self._seconds, self._losses = 0.0, {}  # type: float, dict[str, float]

    def take_up(self, saved: dict[str, Any]) -> None:
        self._trainer.restore(saved["trainer"])
        self._seconds, self._losses = saved["seconds"], saved["held_out"]
        lines = (self._out / CURVE).read_text("utf-8").splitlines()
        kept = [line for line in lines if json.loads(line)["step"] <= self._trainer.step]
        (self._out / CURVE).write_text("".join(f"{line}\n" for line in kept), "utf-8")

    def finish(self, hours: float | None, progress: Callable[[str, int, int], None] | None) -> TrainingSummary:
        trainer, plan = self._trainer, self._trainer.plan
        began, saved_at, passed = time.perf_counter(), time.perf_counter(), self._seconds
        if trainer.step == 0:
            (self._out / CURVE).unlink(missing_ok=True)
        with (self._out / CURVE).open("a", encoding="utf-8") as curve:
            for losses in trainer.run():
                now = time.perf_counter()
                self._seconds = passed + now - began
                step = trainer.step
                entry: dict[str, Any] = {"step": step, "seconds": round(self._seconds, 1), **losses}
                if step % _HELD_OUT_EVERY == 0 or step == plan.steps:
                    self._losses = held_out_losses(
                        trainer.average, trainer.heads, self._held_out, plan, _HELD_OUT_FRAMES
                    )
                    entry["held_out"] = self._losses
                if step <= _EVERY_LOSS_UNTIL or step % _LOSS_EVERY == 0 or "held_out" in entry:
                    curve.write(json.dumps(entry) + "\n")
                if progress is not None:
                    progress("training steps", step, plan.steps)
                if now - saved_at > _SAVE_SECONDS:
                    curve.flush()
                    self._save()
                    saved_at = now
                if hours is not None and self._seconds - passed > hours * 3600:
                    break
        return self._save()

    def _save(self) -> TrainingSummary:
        """State and policy, each replaced whole."""
        trainer = self._trainer
        state = {
            "plan": trainer.plan.to_json(),
            "trainer": trainer.state(),
            "seconds": self._seconds,
            "held_out": self._losses,
            "demonstrations": self._digest,
        }
        partial = self._out / f".{STATE}.{os.getpid()}"
        torch.save(state, partial)
        partial.rename(self._out / STATE)
        fresh = self._out / f".{POLICY}.{os.getpid()}"
        shutil.rmtree(fresh, ignore_errors=True)
        save_policy(trainer.average, fresh)
        shutil.rmtree(self._out / POLICY, ignore_errors=True)
        fresh.rename(self._out / POLICY)
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
        (self._out / SUMMARY).write_text(json.dumps(summary.to_json(), indent=1) + "\n", "utf-8")
        (self._out / CARD).write_text(model_card(summary.to_json(), None), "utf-8")
        return summary
