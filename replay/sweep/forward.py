"""Forward cells: pruned forward passes and actions of configurations on one recorded episode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch

from replay.accuracy import EpisodeReplay, StepReplay, replay_steps
from replay.references import References
from replay.replay import Replay
from replay.source import TraceSource
from replay.summary import Summary, summarise
from replay.sweep.flops import ModelSize, countable, step_flops
from replay.sweep.inputs import EpisodeInputs
from tracekit.config import Configuration
from tracekit.engine import Captured, SharedPasses, StepOptions
from tracekit.observation import Observation
from tracekit.policy import Policy, Precision, Prefix, Tokens

__all__ = ["ForwardCells"]


class ForwardCells:
    """Policies and unpruned references that cells share, in one process.

    `policy`: in place of the recorded one. Configurations go through an episode together, step by step: what none of
    them changes (the image made ready, the encoders, passes over all tokens) is computed by the first and held for the
    others until the next step.
    """

    def __init__(self, policy: str | None) -> None:
        self._spec = policy
        self._policies: dict[tuple[str, str], _OneStep] = {}
        self._episode: tuple[str, str] | None = None
        self._references: dict[str, EpisodeReplay] = {}

    def cells(
        self, source: TraceSource, inputs: EpisodeInputs, configs: Sequence[Configuration], size: ModelSize | None
    ) -> list[dict[str, Any]]:
        """The results of every one of `configs` on the episode, in order."""
        rows: dict[str, dict[str, Any]] = {}
        together = [config for config in configs if config.execution.mode == "throughput"]
        if together:
            named = [replace(config, name=config.digest) for config in together]  # names are labels, and may be equal
            result = Replay(source.path, policy=self._spec, episodes=[inputs.target.episode]).run(*named)
            for found in result.summaries:
                (own,) = result.episodes[found.config.name]
                rows[found.config.digest] = {**_columns(found), "gflops": _gflops(inputs, own, found.config, size)}
        alone = {config.digest: config for config in configs if config.execution.mode == "latency"}
        for dtype in dict.fromkeys(config.execution.dtype for config in alone.values()):
            of_one = {digest: config for digest, config in alone.items() if config.execution.dtype == dtype}
            rows |= self._in_turns(source, inputs, of_one, size)
        return [rows[config.digest] for config in configs]

    def _in_turns(
        self, source: TraceSource, inputs: EpisodeInputs, configs: Mapping[str, Configuration], size: ModelSize | None
    ) -> dict[str, dict[str, Any]]:
        """Digest -> results of `configs`, which share a precision, beside the unpruned runs under the same reuse."""
        policy = self._policy(source, next(iter(configs.values())))
        if self._episode != (source.trace.digest, inputs.target.episode):
            self._episode, self._references = (source.trace.digest, inputs.target.episode), {}
        references = {digest: References.of(config).unpruned for digest, config in configs.items()}
        needed = {one.digest: one for one in references.values() if one.digest not in self._references}
        found = _replayed(policy, {**configs, **needed}, source, inputs)
        self._references |= {digest: found[digest] for digest in needed}
        spec, rows = policy.action_spec, {}
        for digest, config in configs.items():
            own, unpruned = found[digest], self._references[references[digest].digest]
            summary = summarise(config, [own], [unpruned], spec, source.execution, None, None, source.pruned_by)
            rows[digest] = {**_columns(summary), "gflops": _gflops(inputs, own, config, size)}
        return rows

    def _policy(self, source: TraceSource, config: Configuration) -> _OneStep:
        key = (source.trace.digest, config.execution.dtype)
        if key not in self._policies:
            loaded = source.policy(self._spec, Precision(dtype=config.execution.dtype))
            self._policies[key] = _OneStep(loaded)
        return self._policies[key]


class _OneStep:
    """A policy that several configurations run on the same step: it makes the observation ready and encodes it once.

    For each number of threads, of which the bits of a product may depend.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._observation: Observation | None = None
        self._tokens: dict[int, Tokens] = {}
        self._prefixes: dict[tuple[int, tuple[int, ...]], Prefix] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def tokenize(self, observation: Observation) -> Tokens:
        """See `Policy.tokenize`."""
        if observation is not self._observation:
            self._observation, self._tokens, self._prefixes = observation, {}, {}
        threads = torch.get_num_threads()
        if threads not in self._tokens:
            self._tokens[threads] = self._policy.tokenize(observation)
        return self._tokens[threads]

    def embed_prefix(self, tokens: Tokens, fps_starts: tuple[int, ...]) -> Prefix:
        """See `Policy.embed_prefix`."""
        key = torch.get_num_threads(), fps_starts
        if key not in self._prefixes:
            self._prefixes[key] = self._policy.embed_prefix(tokens, fps_starts)
        return self._prefixes[key]


def _replayed(
    policy: _OneStep, configs: Mapping[str, Configuration], source: TraceSource, inputs: EpisodeInputs
) -> dict[str, EpisodeReplay]:
    """Digest -> the episode under each of `configs`, which take turns step by step."""
    shared, pinned = SharedPasses(), source.execution["reuse"]["fps"] == "pinned"
    options = StepOptions(shared=shared)
    runs = [
        replay_steps(cast("Policy", policy), config, inputs.episode, options, recorded_pinned=pinned)
        for config in configs.values()
    ]
    steps: list[list[StepReplay]] = [[] for _ in runs]
    for taken in zip(*runs, strict=True):
        for own, step in zip(steps, taken, strict=True):
            own.append(replace(step, memory=None, result=replace(step.result, captured=Captured(), memory=None)))
        shared.forget()
    return {
        digest: EpisodeReplay(inputs.target.episode, tuple(own)) for digest, own in zip(configs, steps, strict=True)
    }


def _columns(found: Summary) -> dict[str, Any]:
    own, unpruned = found.deviation, found.deviation_unpruned
    rates = found.rates
    return {
        "kept_2d": rates.kept_2d,
        "kept_3d": rates.kept_3d,
        "rate_2d": rates.rate_2d,
        "rate_3d": rates.rate_3d,
        "effective_rate": rates.effective_rate,
        "decisions_digest": found.decisions_digest,
        **{name: own[name] for name in ("translation_mm", "rotation_deg", "gripper_flips", "unclipped_relative")},
        "unpruned_relative": unpruned["unclipped_relative"],
        "actions_digest": found.actions_digest,
    }


def _gflops(inputs: EpisodeInputs, own: EpisodeReplay, config: Configuration, size: ModelSize | None) -> float | None:
    if size is None or not countable(config):
        return None
    kept = np.stack([step.result.kept.sum(-1) for step in own.steps])
    return float(step_flops(size, inputs.layout, kept, config.reuse).mean()) / 1e9
