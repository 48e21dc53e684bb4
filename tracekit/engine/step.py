"""One control step, pruned or not: observe → decide → drop rows → prefill → denoise, the same live and in replay."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tracekit.capture import GROUPS, AttentionTap, CaptureSpec
from tracekit.config import Configuration
from tracekit.engine.deciding import Decider
from tracekit.engine.draws import StepDraws
from tracekit.engine.forward import CachedForward, FullForward, PassForward
from tracekit.engine.result import PassRecord, StepResult
from tracekit.layout import TokenLayout
from tracekit.policy import Policy, Prefix, Tokens
from tracekit.profiling import StageClock
from tracekit.pruning import Decision, DecisionKey, Observables, Scores, Shape, point_mask

__all__ = ["StepOptions", "control_step", "decision_shape"]


@dataclass(frozen=True, slots=True)
class StepOptions:
    """What a caller wants beside the action: observables to record, and the encoders' outputs or just their digests."""

    capture: CaptureSpec | None = None
    encoded: Literal["none", "digest", "rows"] = "none"


@torch.inference_mode()
def control_step(
    policy: Policy,
    tokens: Tokens,
    config: Configuration,
    draws: StepDraws,
    key: DecisionKey,
    memory: Any = None,
    *,
    clock: StageClock,
    options: StepOptions | None = None,
    recorded: Scores | None = None,
) -> StepResult:
    """Run one control step of `policy` on `tokens` under `config`.

    `draws` are the step's random inputs, `key` keys the pruner's own draws, `memory` is the pruner's state after the
    previous step of the episode (None at its start), `clock` was started with the step, `recorded` are the scores of an
    unpruned pass of this step, for `observe.feedback = "recorded"`. Deterministic: equal inputs
    give bitwise equal results in one environment. Raises ConfigError where the configuration does not fit the policy.
    """
    return _Step(policy, tokens, config, draws, key, options or StepOptions(), clock).run(memory, recorded)


def decision_shape(layout: TokenLayout) -> Shape:
    """Sizes that a pruner decides for."""
    views = len(layout.views)
    return Shape(
        n_2d=len(layout.image_positions),
        n_3d=len(layout.point_positions),
        views=views,
        moving=(False,) * views,
    )


class _Step:
    """The running state of one control step; lives as long as the call."""

    def __init__(
        self,
        policy: Policy,
        tokens: Tokens,
        config: Configuration,
        draws: StepDraws,
        key: DecisionKey,
        options: StepOptions,
        clock: StageClock,
    ) -> None:
        self.policy, self.tokens, self.config, self.draws = policy, tokens, config, draws
        self.key, self.options, self.clock = key, options, clock
        self.shape = decision_shape(tokens.layout)
        self.encoded: list[PassRecord] = []
        self.prefix: Prefix | None = None
        self.encoded_pass = -1

    def run(self, memory: Any, recorded: Scores | None) -> StepResult:
        layout, passes = self.tokens.layout, self.policy.passes
        decider = Decider(self.policy, self.config, self.key, self.shape, memory, self.clock, recorded)
        kind = CachedForward if self.config.reuse.kind == "prefix_kv" else FullForward
        forward: PassForward = kind(self.policy, layout, self.clock)
        decision = decider.before(self._encode(0))
        sample = torch.from_numpy(self.draws.noise.copy())
        samples: list[npt.NDArray[np.float32]] = []
        kept: list[npt.NDArray[np.bool_]] = []
        action_rows: list[Tensor] = []
        observables: Observables | None = None
        for step in range(passes):
            prefix = self._encode(step)
            kept.append(self._kept(decision, prefix, step))
            tap = self._tap(step, decider.watches)
            with tap or nullcontext():
                noise = forward.predict(step, prefix, kept[-1], sample, tap)
            with self.clock.stage("denoise", step):
                sample = self.policy.advance(sample, noise, step)
            samples.append(sample.float().cpu().numpy())
            if tap is not None and step > 0:
                action_rows.append(tap.received["action"].mean(1))
            elif tap is not None:
                with self.clock.stage("observe"):
                    observables = _observables(tap, prefix, kept[0])
                if decider.watches:
                    decision = decider.after(observables, prefix, decision, kept[0])
        with self.clock.stage("decode", passes - 1):
            action = self.policy.read_out(sample).cpu().numpy()
        return StepResult(
            action=action,
            samples=np.stack(samples),
            kept=np.stack(kept),
            decision=decision,
            pruned_from=decider.governs_from if decision.pruned else passes,
            layout=layout,
            text_ids=self.tokens.text_ids.cpu().numpy(),
            memory=decider.memory,
            times_ns=self.clock.times_ns,
            wall_ns=self.clock.elapsed_ns(),
            observables=observables,
            action_rows=torch.stack(action_rows).numpy() if action_rows else None,
            encoded=tuple(self.encoded),
        )

    def _encode(self, step: int) -> Prefix:
        """The prefix of pass `step`: encoded once per pass, or once per step where the encoders' output is reused."""
        if self.prefix is not None and (self.config.reuse.kind != "none" or self.encoded_pass == step):
            return self.prefix
        self.encoded_pass = step
        pinned = self.config.reuse.fps == "pinned"
        starts = tuple(int(start) for start in self.draws.fps_starts[0 if pinned else step])
        with self.clock.stage("encode", step):
            self.prefix = self.policy.embed_prefix(self.tokens, starts)
        if self.options.encoded != "none":
            self.encoded.append(_pass_record(self.prefix, with_rows=self.options.encoded == "rows"))
        return self.prefix

    def _kept(self, decision: Decision, prefix: Prefix, step: int) -> npt.NDArray[np.bool_]:
        """(N_visual,) visual tokens of pass `step`: all before the decision; points follow their patch in this pass."""
        if not decision.pruned:
            return np.ones(self.shape.n_2d + self.shape.n_3d, bool)
        with self.clock.stage("fuse", step):
            if prefix.alignment is None:
                return decision.keep_2d
            drawn_as = 0 if self.config.reuse.fps == "pinned" else step
            points = point_mask(decision, prefix.alignment.patch, drawn_as, self.key)
            return np.concatenate([decision.keep_2d, points])

    def _tap(self, step: int, watched: bool) -> AttentionTap | None:
        recording = self.options.capture
        if step == 0 and (watched or recording is not None):
            return AttentionTap(self.policy.backbone, self.tokens.layout, GROUPS)
        if recording is not None and recording.later_action_rows:
            return AttentionTap(self.policy.backbone, self.tokens.layout, ("action",))
        return None


def _observables(tap: AttentionTap, prefix: Prefix, kept: npt.NDArray[np.bool_]) -> Observables:
    received = tap.received
    return Observables(
        norms={name: norms.numpy() for name, norms in tap.norms.items()},
        attention=torch.stack(list(received.values()), dim=2).numpy(),
        groups=tuple(received),
        patch=None if prefix.alignment is None else prefix.alignment.patch,
        kept=None if bool(kept.all()) else kept,
    )


def _pass_record(prefix: Prefix, *, with_rows: bool) -> PassRecord:
    rows = prefix.rows.float().cpu().contiguous().numpy()
    return PassRecord(
        centres=None if prefix.centres is None else prefix.centres.cpu().numpy(),
        patch=None if prefix.alignment is None else prefix.alignment.patch,
        rows=rows if with_rows else None,
        rows_digest=hashlib.sha256(rows.tobytes()).digest(),
    )
