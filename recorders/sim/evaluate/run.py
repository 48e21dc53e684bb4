"""Many episodes: every case on the same tasks and seeds, over processes, taken up where an earlier run stopped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from recorders.recorder import Recorder
from recorders.sim.blind import is_blind
from recorders.sim.environment import Environment
from recorders.sim.evaluate.controls import Case
from recorders.sim.evaluate.episode import EpisodeOutcome, run_episode
from recorders.sim.evaluate.known import add_episode, known_episodes
from recorders.sim.evaluate.results import Evaluation
from recorders.sim.evaluate.sightless import no_control_because
from recorders.sim.limits import refuse_episodes, refuse_tasks
from recorders.sim.processes import MOST_PROCESSES, carried_out
from recorders.sim.record import refuse_recorded
from tracekit.digest import digest_json
from tracekit.engine import Controller
from tracekit.errors import ConfigError, PolicyError
from tracekit.policy import Policy, PolicyIdentity, Precision, load_policy

__all__ = ["evaluate"]

THREADS = 1
"""Per process. Small policies gain little from a second one, and a second process gains more."""


@dataclass(frozen=True, slots=True)
class _Job:
    """One episode: `seed` of `task` under `case`, by the policy that has `identity`."""

    case: Case
    task: str
    seed: int
    identity: PolicyIdentity

    @property
    def key(self) -> str:
        """Digest of everything that the episode's outcome depends on, the machine apart."""
        configuration = {key: value for key, value in self.case.configuration.to_json().items() if key != "name"}
        return digest_json(
            {
                "policy": [self.identity.config_digest, self.identity.weights_digest],
                "configuration": configuration,
                "wrong_instruction": self.case.wrong_instruction,
                "scene": Environment.version(),
                "task": self.task,
                "seed": self.seed,
            }
        )


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
    already are not run again, unless to be recorded. `record`: trace to write, for one case in one process; it is not
    taken up after a stop.
    Every step computes with one thread, whatever the configurations say, but for a recorded one: a replay compares
    itself with the configuration as it was given. A blind policy is run with every visual token dropped, whatever its
    case says.

    Raises before the first episode: ConfigError for what cannot be run, PolicyError for a policy that cannot be loaded
    or does not fit the simulator, TraceError for an `out` that holds something else and for a `record` that has one of
    the episodes or was recorded otherwise. Later: PolicyError where a policy was replaced meanwhile, TraceError where a
    process was killed.
    """
    refuse_episodes(episodes, seed, policy_drives=True)
    _refuse_request(cases, tasks, processes)
    if record is None:
        cases = [case.with_threads(THREADS) for case in cases]
    policies = _Policies()
    identities = {case.policy: policies.load(case).identity for case in cases}
    cases = [_shown_what_it_was_trained_on(case, tasks, identities[case.policy]) for case in cases]
    if record is not None:
        if len(cases) > 1 or processes > 1 or cases[0].configuration.kind == "drop":
            raise ConfigError(
                "--record: records one configuration in one process; no control that drops a modality, no blind policy"
            )
        refuse_recorded(record, [(task, seed + i) for task in tasks for i in range(episodes)])
    jobs = [
        _Job(case, task, seed + i, identities[case.policy]) for i in range(episodes) for task in tasks for case in cases
    ]
    written = {} if out is None else known_episodes(out)
    known = {} if record is not None else dict(written)
    keys = [job.key for job in jobs]
    missing = [job for job, key in zip(jobs, keys, strict=True) if key not in known]
    here = _Episodes(policies)
    for job in {job.case.name: job for job in reversed(missing)}.values():
        here.controller(job)  # its warm-up raises what episodes would: some errors come as late as in a step
    if out is not None and missing:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.open("a").close()  # rather now than after an episode
    for done, (job, outcome) in enumerate(_outcomes(missing, here, processes, record)):
        known[job.key] = outcome
        if out is not None and job.key not in written:
            add_episode(out, {"key": job.key, "name": job.case.name, "task": job.task, "seed": job.seed}, outcome)
        if progress is not None:
            progress("running episodes", done + 1, len(missing))
    return Evaluation.of(
        [(job.case, job.task, job.seed, known[key]) for job, key in zip(jobs, keys, strict=True)], identities
    )


def _refuse_request(cases: Sequence[Case], tasks: Sequence[str], processes: int) -> None:
    if not 1 <= processes <= MOST_PROCESSES:
        raise ConfigError(f"--processes {processes}: give 1 to {MOST_PROCESSES}")
    for name, rows in Counter(case.name for case in cases).items():
        if rows > 1:
            raise ConfigError(
                f"{name}: {rows} rows have this name; name each control once, each configuration differently"
            )
    refuse_tasks(tasks)


def _shown_what_it_was_trained_on(case: Case, tasks: Sequence[str], identity: PolicyIdentity) -> Case:
    if case.must_be_blind:
        reason = no_control_because(Path(case.policy), identity, tasks)
        if reason is not None:
            raise ConfigError(f"--blind {case.policy}: {reason}")
    return case.without_eyes() if is_blind(identity) else case


def _outcomes(
    jobs: Sequence[_Job], here: _Episodes, processes: int, record: Path | None
) -> Iterator[tuple[_Job, EpisodeOutcome]]:
    if record is not None:
        yield from _recorded(jobs, here, record)
        return
    again = "give fewer --processes; with --out, what is finished is not run again"
    alone = processes == 1 or len(jobs) < 2
    yield from carried_out((lambda: here) if alone else _Episodes, jobs, processes, again)


def _recorded(jobs: Sequence[_Job], here: _Episodes, record: Path) -> Iterator[tuple[_Job, EpisodeOutcome]]:
    case = jobs[0].case
    controller = here.controller(jobs[0])
    source = {"kind": "simulator", **Environment.version()}
    with Recorder(record, controller, driver="policy", source=source) as recorder:
        for job in jobs:
            yield (
                job,
                run_episode(
                    controller,
                    here.environment(job, controller.policy),
                    job.seed,
                    wrong_instruction=case.wrong_instruction,
                    recorder=recorder,
                ),
            )


class _Policies:
    """Policies by name or directory and arithmetic, each loaded once."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[str, str], Policy] = {}

    def load(self, case: Case) -> Policy:
        key = (case.policy, case.configuration.execution.dtype)
        if key not in self._loaded:
            self._loaded[key] = load_policy(case.policy, Precision(dtype=key[1]))
        return self._loaded[key]


class _Episodes:
    """One process's part: policies, environments, and which configurations have been warmed up."""

    def __init__(self, policies: _Policies | None = None) -> None:
        self._policies = policies or _Policies()
        self._environments: dict[tuple[str, str], Environment] = {}
        self._warm: set[tuple[str, str]] = set()

    def __call__(self, job: _Job) -> EpisodeOutcome:
        controller = self.controller(job)
        environment = self.environment(job, controller.policy)
        return run_episode(controller, environment, job.seed, wrong_instruction=job.case.wrong_instruction)

    def controller(self, job: _Job) -> Controller:
        """A fresh controller for `job`; raises PolicyError where the policy is no longer the one that was asked for."""
        policy = self._policies.load(job.case)
        if policy.identity != job.identity:
            raise PolicyError(f"{job.case.policy}: was replaced while it was evaluated; run the command again")
        self._warm_up(job, policy)
        return Controller(policy, job.case.configuration)

    def environment(self, job: _Job, policy: Policy) -> Environment:
        """The environment of the job's task with the policy's actions."""
        key = (job.case.policy, job.task)
        if key not in self._environments:
            self._environments[key] = Environment(job.task, policy.action_spec)
        return self._environments[key]

    def _warm_up(self, job: _Job, policy: Policy) -> None:
        """One step that counts nowhere, by a controller of its own: first steps compile and allocate."""
        key = (job.case.policy, job.case.configuration.digest)
        if key not in self._warm:
            self._warm.add(key)
            observation = self.environment(job, policy).reset(job.seed)
            Controller(policy, job.case.configuration).step(observation)
