"""One configuration's replay in figures: tokens, cost, deviation, digests. What is not known is None, never a guess."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from replay.accuracy import EpisodeReplay, StepReplay
from replay.deviation import deviation
from replay.timing import VariantTiming
from tracekit.actions import ActionSpec
from tracekit.config import Configuration
from tracekit.profiling import STAGES
from tracekit.pruning import decision_digest

__all__ = ["DECISION_STAGES", "Rates", "Speedup", "Summary", "actions_digest", "rates", "speedup", "summarise"]

DECISION_STAGES = ("stage3", "stage1", "stage2", "fuse")


@dataclass(frozen=True, slots=True)
class Rates:
    """Kept tokens and pruning rates.

    `kept_2d`, `kept_3d`, `rate_2d`, `rate_3d`: means over the steps at which pruning was active, over their pruned
    passes (to compare with the paper). `effective_rate`: pruned / all visual token-passes, unpruned ones included; a
    token that is dropped behind a decoder block counts as pruned for the share of blocks that it missed.
    """

    kept_2d: float
    kept_3d: float
    rate_2d: float
    rate_3d: float
    effective_rate: float


@dataclass(frozen=True, slots=True)
class Speedup:
    """Factors against the unpruned policy as released; their product is the total.

    `skipping`: of the reuse across steps (`mask`, `skip_frame`), which is no pruning; None without.
    """

    total: float
    encoders: float
    reuse: float
    pruning: float
    skipping: float | None = None

    def to_json(self) -> dict[str, float]:
        """The factors that there are."""
        return {name: factor for name, factor in asdict(self).items() if factor is not None}


@dataclass(frozen=True, slots=True)
class Summary:
    """A configuration's figures; `to_json` gives the stable keys of `replay --json`."""

    config: Configuration
    rates: Rates
    timing: VariantTiming | None
    speedup: Speedup | None
    deviation: Mapping[str, Any]
    deviation_unpruned: Mapping[str, Any]
    encode_matches: bool | None
    matches_recording: bool | Mapping[str, Any] | None
    decisions_digest: str
    actions_digest: str

    def to_json(self) -> dict[str, Any]:
        """Plain values; times in ms."""
        timing = self.timing
        return {
            "name": self.config.name,
            "digest": self.config.digest,
            "labels": list(self.config.labels),
            "threads": self.config.execution.threads,
            **asdict(self.rates),
            "decision_ms": None if timing is None else timing.stage_ms(*DECISION_STAGES),
            "observe_ms": None if timing is None else timing.stage_ms("observe"),
            "step_ms": None if timing is None else {"median": timing.median_ms, "spread": timing.spread_ms},
            "stages_ms": None
            if timing is None
            else {**{s: timing.stage_ms(s) for s in STAGES}, "other": timing.other_ms},
            "speedup": None if self.speedup is None else self.speedup.to_json(),
            "deviation": dict(self.deviation),
            "deviation_unpruned": dict(self.deviation_unpruned),
            "encode_matches": self.encode_matches,
            "matches_recording": self.matches_recording,
            "decisions_digest": self.decisions_digest,
            "actions_digest": self.actions_digest,
        }


def summarise(
    config: Configuration,
    episodes: Sequence[EpisodeReplay],
    unpruned: Sequence[EpisodeReplay],
    spec: ActionSpec,
    recorded_execution: Mapping[str, Any],
    timing: VariantTiming | None,
    factors: Speedup | None,
    pruned_by: Configuration | None = None,
) -> Summary:
    """Figures of `config` from its accuracy pass and that of the unpruned run under the same reuse.

    `recorded_execution`, `pruned_by`: how the recorded run was computed, and by what it was pruned.
    """
    steps = _steps(episodes)
    return Summary(
        config=config,
        rates=rates(steps),
        timing=timing,
        speedup=factors,
        deviation=_deviation(spec, steps),
        deviation_unpruned=_deviation(spec, _steps(unpruned)),
        encode_matches=_all(step.encode_matches for step in steps),
        matches_recording=_matches(config, steps, recorded_execution, pruned_by),
        decisions_digest=decision_digest([step.result.decision for step in steps]),
        actions_digest=actions_digest(steps),
    )


def rates(steps: Sequence[StepReplay]) -> Rates:
    """Kept tokens and rates over all steps (see `Rates`)."""
    n_2d = len(steps[0].result.layout.image_positions)
    n_visual = steps[0].result.kept.shape[1]
    active = [step.result.kept[step.result.pruned_from :] for step in steps if step.result.decision.pruned]
    active = [kept for kept in active if len(kept)] or [np.ones((1, n_visual), bool)]
    kept_2d = float(np.mean([kept[:, :n_2d].sum(axis=1).mean() for kept in active]))
    kept_3d = float(np.mean([kept[:, n_2d:].sum(axis=1).mean() for kept in active]))
    present = [step.result.kept + ~step.result.kept * step.result.whole_share for step in steps]
    return Rates(
        kept_2d=kept_2d,
        kept_3d=kept_3d,
        rate_2d=1 - kept_2d / n_2d,
        rate_3d=1 - kept_3d / (n_visual - n_2d) if n_visual > n_2d else 0.0,
        effective_rate=1 - float(np.concatenate(present).mean()),
    )


def speedup(
    pruned: VariantTiming,
    full: VariantTiming,
    encoders: VariantTiming,
    reuse: VariantTiming,
    every_step: VariantTiming | None = None,
) -> Speedup:
    """Ratios of medians; `full`, `encoders`, `reuse`: unpruned, under that reuse.

    `every_step`: `pruned` without its reuse across steps, where it has one.
    """
    computed = pruned if every_step is None else every_step
    return Speedup(
        total=full.median_ms / pruned.median_ms,
        encoders=full.median_ms / encoders.median_ms,
        reuse=encoders.median_ms / reuse.median_ms,
        pruning=reuse.median_ms / computed.median_ms,
        skipping=None if every_step is None else every_step.median_ms / pruned.median_ms,
    )


def actions_digest(steps: Sequence[StepReplay]) -> str:
    """SHA-256 (hex) over the unclipped sampler outputs of all steps, float32 little-endian, in order."""
    digest = hashlib.sha256()
    for step in steps:
        digest.update(np.ascontiguousarray(step.result.unclipped, "<f4").tobytes())
    return digest.hexdigest()


def _steps(episodes: Sequence[EpisodeReplay]) -> list[StepReplay]:
    return [step for episode in episodes for step in episode.steps]


def _deviation(spec: ActionSpec, steps: Sequence[StepReplay]) -> dict[str, Any]:
    recorded = [step.recorded.action for step in steps]
    unclipped = [step.recorded.unclipped for step in steps]
    names = ("translation_mm", "rotation_deg", "gripper_flips", "unclipped_relative", "clipped_share")
    present_actions = [action for action in recorded if action is not None]
    present_unclipped = [sample for sample in unclipped if sample is not None]
    if len(present_actions) != len(steps) or len(present_unclipped) != len(steps):
        return dict.fromkeys(names)
    return asdict(
        deviation(
            spec,
            [step.result.action for step in steps],
            present_actions,
            [step.result.unclipped for step in steps],
            present_unclipped,
        )
    )


def _matches(
    config: Configuration, steps: Sequence[StepReplay], recorded: Mapping[str, Any], pruned_by: Configuration | None
) -> bool | Mapping[str, Any] | None:
    """Whether actions are bitwise the recorded ones, and of a run that was pruned also the share of equal mask bits.

    None where the configuration computes something else: another reuse or execution, or, pruned, anything else.
    """
    actions = _all(step.action_matches for step in steps)
    if pruned_by is not None:
        bits = [step.mask_bits for step in steps]
        if config.digest != pruned_by.digest or None in bits:
            return None
        equal, every = (sum(column) for column in zip(*[pair for pair in bits if pair is not None], strict=True))
        return {"mask_bits": equal / every, "actions_bitwise": actions}
    table = config.to_json()
    if {"reuse": table["reuse"], **table["execution"]} != dict(recorded):
        return None
    return actions


def _all(answers: Any) -> bool | None:
    found = list(answers)
    return None if None in found else all(found)
