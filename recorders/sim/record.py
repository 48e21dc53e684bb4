"""Records the simulator: policy or scripted expert drives, the policy's forward pass is recorded at every key pose."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from recorders.recorder import Recorder, seeded_id
from recorders.sim.blind import is_blind
from recorders.sim.environment import VIEW, Environment, episode_uid
from recorders.sim.expert import Expert
from recorders.sim.limits import refuse_episodes, refuse_tasks
from tracekit.capture import CaptureSpec
from tracekit.config import Configuration
from tracekit.engine import Controller, execution_threads
from tracekit.errors import ConfigError, PolicyError, TraceError
from tracekit.policy import Precision, load_policy
from tracekit.sizes import shapes_of, step_bytes
from tracekit.store import EpisodeInfo, Trace

__all__ = ["Driver", "RecordingSummary", "as_driver", "record_simulator", "refuse_recorded"]

Driver = Literal["expert", "policy"]
"""Who moves the arm. Where the expert does, the policy's actions are computed and not executed (a shadow run)."""


def as_driver(name: str) -> Driver:
    """`name` as a driver; raises ConfigError for another one."""
    if name == "expert":
        return "expert"
    if name == "policy":
        return "policy"
    raise ConfigError(f"--drive {name}: choose policy or expert")


@dataclass(frozen=True, slots=True)
class RecordingSummary:
    """What was recorded: the new episodes, seconds it took, size of the whole trace, driver, whether it is trained.

    `step_bytes`: key -> bytes per control step before compression, largest first.
    """

    path: Path
    episodes: tuple[EpisodeInfo, ...]
    seconds: float
    nbytes: int
    driver: Driver
    trained: bool
    step_bytes: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """The object that `record sim --json` prints."""
        return {
            "trace": str(self.path),
            "episodes": [
                {
                    "id": e.id,
                    "task": e.task,
                    "instruction": e.instruction,
                    "seed": e.seed,
                    "steps": e.steps,
                    "success": e.success,
                }
                for e in self.episodes
            ],
            "seconds": self.seconds,
            "bytes": self.nbytes,
            "bytes_per_step": self.step_bytes,
            "driver": self.driver,
            "policy_trained": self.trained,
        }


def record_simulator(
    tasks: Sequence[str],
    episodes: int,
    seed: int,
    out: str | Path,
    *,
    policy: str = "reference",
    drive: Driver = "expert",
    capture: CaptureSpec | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    announce: Callable[[dict[str, int]], None] | None = None,
) -> RecordingSummary:
    """Record `episodes` per task, seeds `seed`, `seed` + 1, …, into `out`, with `reuse = none` and free FPS starts.

    Raises ConfigError for an unknown task, an unusable count, or seeds that are negative or, where the policy drives,
    for training, PolicyError if the policy does not take the simulator's observations or is blind, TraceError if an
    episode is in the trace already, whole or not, or the trace was recorded otherwise; all of these before anything is
    written. `announce` is told the bytes per step by key before the first one.
    """
    refuse_episodes(episodes, seed, policy_drives=drive == "policy")
    refuse_tasks(tasks)
    plan = [(task, seed + index) for task in tasks for index in range(episodes)]
    path = Path(out)
    refuse_recorded(path, plan)
    config = Configuration()
    loaded = load_policy(policy, Precision(dtype=config.execution.dtype))
    if is_blind(loaded.identity):
        raise PolicyError(
            f"--policy {policy}: was trained without eyes, and a recording would show it everything; use `tracekit "
            "evaluate`, which does not"
        )
    controller = Controller(loaded, config)
    environments = {task: Environment(task, loaded.action_spec) for task in tasks}
    task, number = plan[0]
    observation = environments[task].reset(number)
    tokens = loaded.tokenize(observation)  # a policy that does not fit is refused here
    sizes = step_bytes(shapes_of(loaded, tokens), observation, capture or CaptureSpec.default())
    source = {"kind": "simulator", **Environment.version()}
    start = time.perf_counter()
    with (
        execution_threads(config.execution),
        Recorder(path, controller, capture, driver=drive, source=source) as recorder,
    ):
        if announce is not None:
            announce(sizes)
        for done, (task, number) in enumerate(plan):
            if progress is not None:
                progress("recording episodes", done, len(plan))
            _record_episode(recorder, controller, environments[task], number, drive)
    seconds = time.perf_counter() - start
    trace = Trace.open(path)
    new = {seeded_id(task, number) for task, number in plan}
    return RecordingSummary(
        path=path,
        episodes=tuple(info for info in trace.episodes if info.id in new),
        seconds=seconds,
        nbytes=trace.nbytes,
        driver=drive,
        trained=loaded.identity.trained,
        step_bytes=sizes,
    )


def _record_episode(
    recorder: Recorder, controller: Controller, environment: Environment, seed: int, drive: Driver
) -> None:
    observation = environment.reset(seed)
    expert = Expert(environment)
    with recorder.episode(
        environment.task,
        environment.instruction,
        seed=seed,
        uid=episode_uid(environment.task, seed),
        cameras={VIEW: environment.camera},
    ) as episode:
        done = False
        while not done:
            with episode.step(observation, environment.phase) as step:
                chunk = controller.act(observation)
                step.action = chunk[0] if drive == "policy" else expert.act()
            outcome = environment.step(step.action)
            observation, done, episode.success = outcome.observation, outcome.done, outcome.success


def refuse_recorded(path: Path, plan: Sequence[tuple[str, int]]) -> None:
    """Raise TraceError if an episode of `plan`, pairs of task and seed, is in the trace `path`, finished or not."""
    if path.exists():
        trace = Trace.open(path)
        known = {info.id for info in trace.episodes}
        for task, seed in plan:
            name = seeded_id(task, seed)
            if name in known:
                raise TraceError(f"{path}: episode {name!r} is already there; record other seeds or into another trace")
            if name in trace.unfinished:
                raise TraceError(
                    f"{path}: episode {name!r} was started and is not finished; wait where it is being recorded, "
                    "run `tracekit repair` where that was killed, or record into another trace"
                )
