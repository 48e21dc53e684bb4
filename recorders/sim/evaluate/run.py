"""Many episodes: every case on the same tasks and seeds, over processes, taken up where an earlier run stopped."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path

import torch

from recorders.recorder import Recorder
from recorders.sim.environment import Environment
from recorders.sim.evaluate.controls import Case
from recorders.sim.evaluate.episode import EpisodeOutcome, run_episode
from recorders.sim.evaluate.results import Evaluation
from recorders.sim.tasks import find_task
from recorders.sim.train.seeds import refuse_training_seeds
from tracekit.actions import ActionSpec
from tracekit.digest import digest_json
from tracekit.engine import Controller
from tracekit.errors import ConfigError, TraceError
from tracekit.policy import Policy, PolicyIdentity, Precision, load_policy

__all__ = ["evaluate"]

Job = tuple[Case, str, int]

THREADS = 1
"""Per process. Small policies gain little from a second one, and a second process gains more."""


def evaluate(
    cases: Sequence[Case],
    tasks: Sequence[str],
    episodes: int,
    seed: int,
    *,
    processes: int = 1,
    out: Path | None = None,
    record: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Run every one of `cases` on seeds `seed` ... `seed` + `episodes` - 1 of each of `tasks`.

    `out`: JSON lines, one per finished episode; those of the same policy, configuration and scene that are there
    already are not run again. `record`: trace to write, for one case in one process. Every step computes with one
    thread, whatever the configurations say, but for a recorded one: a replay compares itself with the configuration as
    it was given. Raises ConfigError for what cannot be run, before the first episode.
    """
    if episodes < 1 or processes < 1:
        raise ConfigError(f"--episodes {episodes}, --processes {processes}: both must be at least 1")
    refuse_training_seeds(seed, episodes)
    names = [case.name for case in cases]
    if len(set(names)) < len(names):
        raise ConfigError(f"configurations {', '.join(names)}: two share a name; give each file another `name`")
    if len(set(tasks)) < len(tasks):
        raise ConfigError(f"--task {','.join(tasks)}: a task is named twice; name each once")
    for task in tasks:
        find_task(task)
    if record is not None and (len(cases) > 1 or processes > 1 or cases[0].configuration.kind == "drop"):
        raise ConfigError("--record: records one configuration in one process, and no control that drops a modality")
    if record is None:
        cases = [case.with_threads(THREADS) for case in cases]
    identities = {case.policy: _policy(case.policy, case.configuration.execution.dtype).identity for case in cases}
    jobs: list[Job] = [(case, task, seed + i) for i in range(episodes) for task in tasks for case in cases]
    known = {} if out is None or record is not None else _known(out)
    keys = {job: _key(job, identities[job[0].policy]) for job in jobs}
    missing = [job for job in jobs if keys[job] not in known]
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    for done, (job, outcome) in enumerate(_carried_out(missing, processes, record)):
        known[keys[job]] = outcome
        if out is not None:
            line = {"key": keys[job], "name": job[0].name, "task": job[1], "seed": job[2], **outcome.to_json()}
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if progress is not None:
            progress("running episodes", done + 1, len(missing))
    return Evaluation.of(
        [(case, task, number, known[keys[case, task, number]]) for case, task, number in jobs], identities
    )


def _carried_out(jobs: Sequence[Job], processes: int, record: Path | None) -> Iterator[tuple[Job, EpisodeOutcome]]:
    if processes == 1 or len(jobs) < 2:
        yield from _recorded(jobs, record) if record is not None else ((job, _run(job)) for job in jobs)
        return
    with ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(THREADS,),
    ) as pool:
        pending = {pool.submit(_run, job): job for job in jobs}
        try:
            for finished in as_completed(pending):
                yield pending[finished], finished.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _recorded(jobs: Sequence[Job], record: Path) -> Iterator[tuple[Job, EpisodeOutcome]]:
    case = jobs[0][0]
    controller = _controller(case)
    source = {"kind": "simulator", **Environment.version()}
    with Recorder(record, controller, driver="policy", source=source) as recorder:
        for job in jobs:
            environment = _environment(job[1], controller.policy.action_spec)
            told = case.wrong_instruction
            yield job, run_episode(controller, environment, job[2], wrong_instruction=told, recorder=recorder)


def _run(job: Job) -> EpisodeOutcome:
    case, task, seed = job
    controller = _controller(case)
    environment = _environment(task, controller.policy.action_spec)
    return run_episode(controller, environment, seed, wrong_instruction=case.wrong_instruction)


@cache
def _policy(spec: str, dtype: str) -> Policy:
    return load_policy(spec, Precision(dtype=dtype))


def _controller(case: Case) -> Controller:
    return Controller(_policy(case.policy, case.configuration.execution.dtype), case.configuration)


@cache
def _environment(task: str, spec: ActionSpec) -> Environment:
    return Environment(task, spec)


def _key(job: Job, identity: PolicyIdentity) -> str:
    """Digest of everything that an episode's outcome depends on, the machine apart."""
    case, task, seed = job
    configuration = {key: value for key, value in case.configuration.to_json().items() if key != "name"}
    return digest_json(
        {
            "policy": [identity.config_digest, identity.weights_digest],
            "configuration": configuration,
            "wrong_instruction": case.wrong_instruction,
            "scene": Environment.version(),
            "task": task,
            "seed": seed,
        }
    )


def _known(path: Path) -> dict[str, EpisodeOutcome]:
    """Episodes by key that an earlier run left in `path`; a line that was cut off is run again."""
    if not path.exists():
        return {}
    found: dict[str, EpisodeOutcome] = {}
    lines = path.read_text("utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            outcome = {key: entry[key] for key in EpisodeOutcome.__slots__}
            found[entry["key"]] = EpisodeOutcome.from_json(outcome)
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines):
                raise TraceError(f"{path}: line {number} is no episode ({error}); give --out another file") from error
            path.write_text("".join(f"{kept}\n" for kept in lines[:-1]), "utf-8")
    return found
