"""Replays a trace under any number of configurations: decisions and actions on all steps, timings on a sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from replay.accuracy import EpisodeReplay, replay_episode
from replay.references import References
from replay.results import ReplayResult
from replay.source import RecordedEpisode, TraceSource
from replay.summary import Speedup, Summary, speedup, summarise
from replay.timing import TimingOptions, VariantTiming, sample_of, time_variants
from tracekit.config import ACROSS_STEPS, Configuration, load_config
from tracekit.engine import Beside, run_together
from tracekit.errors import ConfigError
from tracekit.policy import Policy, Precision

__all__ = ["Progress", "Replay"]

Progress = Callable[[str, int, int], None]
"""Told what is going on, how much of it is done, and how much there is."""


class Replay:
    """A recorded trace, ready to be replayed.

    `policy`: name or directory of the policy; by default the one that the trace names. `episodes`: ids, all by default.
    Raises TraceError or PolicyError (one line) where the trace or the policy cannot be used.
    """

    def __init__(
        self,
        trace: str | Path,
        *,
        policy: str | None = None,
        episodes: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> None:
        self.source = TraceSource(trace)
        self._spec = policy
        self._episodes = self.source.episodes(episodes)
        self._progress = progress or (lambda *_: None)
        self._policies: dict[str, Policy] = {}
        self._done: dict[str, tuple[EpisodeReplay, ...]] = {}

    def run(self, *configs: str | Path | Configuration, timing: TimingOptions | None = None) -> ReplayResult:
        """Replay every configuration (a Configuration, a TOML file, or a preset's name).

        Without any, a trace that was pruned while it was recorded is replayed under its own configuration. Without
        `timing` no time is measured. Unpruned references are always replayed: they are what deviations and
        speedups are measured against. Raises ConfigError if two configurations share a name.
        """
        pruned_by = self.source.pruned_by
        if not configs and pruned_by is not None:
            configs = (pruned_by,)
        resolved = [config if isinstance(config, Configuration) else load_config(config) for config in configs]
        names = [config.name for config in resolved]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(
                    f"two configurations are called {name!r}; set `name` in the TOML so that results can be told apart"
                )
        if not resolved:
            raise ConfigError("no configuration to replay; give --config FILE or a preset's name")
        needed = []
        for own in resolved:
            references = References.of(own)
            needed += [references.unpruned, *((references.every_step,) if timing is not None else ()), own]
        steps = sum(map(len, self._episodes)) * len({config.digest for config in needed} - self._done.keys())
        report = _Counter(self._progress, "replaying", steps)
        for config in needed:
            if config.execution.mode == "latency":
                self._accuracy(config, report)
        self._together([config for config in needed if config.execution.mode == "throughput"], report)
        timings = self._time(resolved, timing) if timing is not None else {}
        return ReplayResult.of(
            self.source,
            [self._summary(config, timings) for config in resolved],
            {config.name: self._done[config.digest] for config in resolved},
        )

    def _policy(self, config: Configuration) -> Policy:
        dtype = config.execution.dtype
        if dtype not in self._policies:
            self._policies[dtype] = self.source.policy(self._spec, Precision(dtype=dtype))
        return self._policies[dtype]

    def _accuracy(self, config: Configuration, report: _Counter) -> None:
        if config.digest not in self._done:
            jobs = self._jobs(config, len(self._done), report)
            self._done[config.digest] = tuple(job(None) for job in jobs)

    def _together(self, configs: Sequence[Configuration], report: _Counter) -> None:
        """Every episode under every one of `configs` side by side, as many at once as share a precision."""
        missing = {config.digest: config for config in configs if config.digest not in self._done}
        for execution in {config.execution for config in missing.values()}:
            own = [config for config in missing.values() if config.execution == execution]
            jobs = [job for config in own for job in self._jobs(config, len(self._done) + own.index(config), report)]
            found = iter(run_together(self._policy(own[0]), jobs, execution))
            for config in own:
                self._done[config.digest] = tuple(next(found) for _ in self._episodes)

    def _jobs(
        self, config: Configuration, number: int, report: _Counter
    ) -> list[Callable[[Beside | None], EpisodeReplay]]:
        """The replay of every episode; `number` of the configuration in this run, for the NVTX ranges."""
        policy, pinned = self._policy(config), self.source.execution["reuse"]["fps"] == "pinned"

        def job(index: int, episode: RecordedEpisode) -> Callable[[Beside | None], EpisodeReplay]:
            return lambda beside: replay_episode(
                policy, config, episode, report.advance, (number, index), recorded_pinned=pinned, beside=beside
            )

        return [job(index, episode) for index, episode in enumerate(self._episodes)]

    def _time(self, configs: Sequence[Configuration], options: TimingOptions) -> dict[str, VariantTiming]:
        variants = {}
        for config in configs:
            if config.execution.mode == "throughput":
                continue  # several steps at once: no step has a time of its own
            for variant in References.of(config).timed_for(config):
                # an unpruned reference has no memory, so any pass over the same steps can stand in for its own
                steps = self._done[variant.digest if variant.digest in self._done else config.digest]
                variants[variant.digest] = (self._policy(variant), variant, steps)
        uids = [episode.info.uid for episode in self._episodes]
        samples = [sample_of(variant, steps, options.steps) for _, variant, steps in variants.values()]
        count = options.rounds * sum(map(len, samples))
        return time_variants(variants, uids, options, _Counter(self._progress, "timing", count).advance)

    def _summary(self, config: Configuration, timings: dict[str, VariantTiming]) -> Summary:
        references = References.of(config)
        factors: Speedup | None = None
        if config.digest in timings:
            full, encoders, reuse, every, own = (timings[item.digest] for item in references.timed_for(config))
            factors = speedup(own, full, encoders, reuse, every if config.reuse.kind in ACROSS_STEPS else None)
        return summarise(
            config,
            self._done[config.digest],
            self._done[references.unpruned.digest],
            self._policy(config).action_spec,
            self.source.execution,
            timings.get(config.digest),
            factors,
            self.source.pruned_by,
        )


class _Counter:
    """Reports one advance at a time."""

    def __init__(self, progress: Progress, what: str, total: int) -> None:
        self._progress, self._what, self._total = progress, what, total
        self._count = 0

    def advance(self) -> None:
        self._count += 1
        self._progress(self._what, self._count, self._total)
