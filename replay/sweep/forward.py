"""Forward cells: pruned forward passes and actions of one configuration on one recorded episode."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from replay.accuracy import EpisodeReplay, replay_episode
from replay.references import References
from replay.replay import Replay
from replay.source import TraceSource
from replay.summary import Summary, summarise
from replay.sweep.flops import ModelSize, countable, step_flops
from replay.sweep.inputs import EpisodeInputs
from tracekit.config import Configuration
from tracekit.policy import Policy, Precision, Prefix, Tokens

__all__ = ["ForwardCells"]

MEMO_BYTES = 256 * 2**20


class ForwardCells:
    """Policies, unpruned references and encoder outputs that cells share, in one process.

    `policy`: in place of the recorded one. Configurations come episode by episode, so that the encoders of a recorded
    step run once for all of them.
    """

    def __init__(self, policy: str | None) -> None:
        self._spec = policy
        self._policies: dict[tuple[str, str], Policy] = {}
        self._references: dict[tuple[str, str, str], EpisodeReplay] = {}

    def cells(
        self, source: TraceSource, inputs: EpisodeInputs, configs: Sequence[Configuration], size: ModelSize | None
    ) -> list[dict[str, Any]]:
        """The results of every one of `configs` on the episode, in order; those in throughput mode side by side."""
        together = [config for config in configs if config.execution.mode == "throughput"]
        rows: dict[str, dict[str, Any]] = {}
        if together:
            named = [replace(config, name=config.digest) for config in together]  # names are labels, and may be equal
            replaying = Replay(source.path, policy=self._spec, episodes=[inputs.target.episode])
            result = replaying.run(*named)
            for found in result.summaries:
                (own,) = result.episodes[found.config.name]
                rows[found.config.digest] = {**_columns(found), "gflops": _gflops(inputs, own, found.config, size)}
        return [rows.get(config.digest) or self._cell(source, inputs, config, size) for config in configs]

    def _cell(
        self, source: TraceSource, inputs: EpisodeInputs, config: Configuration, size: ModelSize | None
    ) -> dict[str, Any]:
        policy = self._policy(source, config)
        own = _replayed(policy, config, source, inputs)
        reference = self._reference(source, inputs, config, policy)
        spec = policy.action_spec
        found = summarise(config, [own], [reference], spec, source.execution, None, None, source.pruned_by)
        return {**_columns(found), "gflops": _gflops(inputs, own, config, size)}

    def _policy(self, source: TraceSource, config: Configuration) -> Policy:
        key = (source.trace.digest, config.execution.dtype)
        if key not in self._policies:
            loaded = source.policy(self._spec, Precision(dtype=config.execution.dtype))
            self._policies[key] = _Remembering(loaded)
        return self._policies[key]

    def _reference(
        self, source: TraceSource, inputs: EpisodeInputs, config: Configuration, policy: Policy
    ) -> EpisodeReplay:
        """The unpruned run under the same reuse, which the pinning of the point tokens already moves."""
        unpruned = References.of(config).unpruned
        key = (source.trace.digest, inputs.target.episode, unpruned.digest)
        if key not in self._references:
            self._references = {known: run for known, run in self._references.items() if known[:2] == key[:2]}
            self._references[key] = _replayed(policy, unpruned, source, inputs)
        return self._references[key]


class _Remembering:
    """A policy whose encoder outputs are kept while they fit into `MEMO_BYTES`: they depend on no configuration."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._prefixes: OrderedDict[tuple[bytes, tuple[int, ...]], Prefix] = OrderedDict()
        self._nbytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def embed_prefix(self, tokens: Tokens, fps_starts: tuple[int, ...]) -> Prefix:
        """See `Policy.embed_prefix`."""
        key = (_fingerprint(tokens), fps_starts)
        if key in self._prefixes:
            self._prefixes.move_to_end(key)
            return self._prefixes[key]
        prefix = self._policy.embed_prefix(tokens, fps_starts)
        self._prefixes[key] = prefix
        self._nbytes += _nbytes(prefix.rows)
        while self._nbytes > MEMO_BYTES and len(self._prefixes) > 1:
            _, oldest = self._prefixes.popitem(last=False)
            self._nbytes -= _nbytes(oldest.rows)
        return prefix


def _fingerprint(tokens: Tokens) -> bytes:
    digest = hashlib.sha256()
    for part in (tokens.text_ids, *(tokens.inputs[name] for name in sorted(tokens.inputs))):
        digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def _nbytes(rows: Tensor) -> int:
    return rows.numel() * rows.element_size()


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


def _replayed(policy: Policy, config: Configuration, source: TraceSource, inputs: EpisodeInputs) -> EpisodeReplay:
    pinned = source.execution["reuse"]["fps"] == "pinned"
    return replay_episode(policy, config, inputs.episode, _nothing, recorded_pinned=pinned)


def _nothing() -> None:
    pass
