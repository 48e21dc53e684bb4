"""One control step, pruned or not: observe → decide → drop rows → prefill → denoise, the same live and in replay."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tracekit.capture import AttentionTap, CaptureSpec, vocabulary_head
from tracekit.config import Configuration
from tracekit.engine.deciding import Decider, Seen, reduced
from tracekit.engine.draws import StepDraws
from tracekit.engine.fitting import dropping_of
from tracekit.engine.forward import Beside, CachedForward, Dropping, FullForward, PassForward
from tracekit.engine.inside import InsideDecision
from tracekit.engine.observing import needed_capture, observables_of
from tracekit.engine.result import Captured, Deferred, PassRecord, StepResult, rows_digest
from tracekit.engine.sharing import SharedPasses, SharingForward
from tracekit.layout import TokenLayout
from tracekit.policy import Policy, Prefix, Tokens
from tracekit.profiling import StageClock
from tracekit.pruning import Decision, DecisionKey, Observables, Scores, Shape, point_mask
from tracekit.pruning.points import nearest_patches

__all__ = ["StepOptions", "control_step", "decision_shape"]


@dataclass(frozen=True, slots=True)
class StepOptions:
    """What a caller wants beside the action: observables to record, and the encoders' outputs or just their digests.

    `beside`: computes a forward call that nobody watches, together with those of other control steps. `shared`: passes
    over all tokens come from there, with the same bits, where another configuration has computed them; not while
    recording.
    """

    capture: CaptureSpec | None = None
    encoded: Literal["none", "digest", "rows"] = "none"
    beside: Beside | None = None
    shared: SharedPasses | None = None


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
    recorded: Scores | Observables | None = None,
    sensed: Mapping[str, Any] | None = None,
) -> StepResult:
    """Run one control step of `policy` on `tokens` under `config`.

    `draws` are the step's random inputs, `key` keys the pruner's own draws, `memory` is the pruner's state after the
    previous step of the episode (None at its start), `clock` was started with the step, `recorded` is what an unpruned
    pass of this step showed, for `observe.feedback = "recorded"`, `sensed` is what the pruner reads beside the forward
    pass (`tracekit.engine.observing.from_sensors`). Deterministic: equal inputs give bitwise equal results in one
    environment. Raises ConfigError where the configuration does not fit the policy.
    """
    step = _Step(policy, tokens, config, draws, key, options or StepOptions(), clock, sensed or {})
    return step.run(memory, recorded)


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
        sensed: Mapping[str, Any],
    ) -> None:
        self.policy, self.tokens, self.config, self.draws = policy, tokens, config, draws
        self.key, self.options, self.clock, self.sensed = key, options, clock, sensed
        self.shape = decision_shape(tokens.layout)
        self.encoded: list[Prefix] = []
        self.prefix: Prefix | None = None
        self.encoded_pass = -1

    def run(self, memory: Any, recorded: Scores | Observables | None) -> StepResult:
        passes = self.policy.passes
        decider = Decider(self.config, self.key, self.shape, memory, recorded, self.clock.stage)
        dropping = dropping_of(self.policy, self.config)
        forward = self._forward(dropping)
        first = self._encode(0)
        decision = decider.before(_followed(first))
        sample = torch.from_numpy(self.draws.noise.copy())
        samples: list[Tensor] = []
        kept: list[npt.NDArray[np.bool_]] = []
        observables: Observables | None = None
        with ExitStack() as tapped:
            tap = self._tap(decider)
            if tap is not None:
                tapped.enter_context(tap)
            for step in range(passes):
                prefix = self._encode(step)
                watching = tap if step == 0 or self._takes_later else None
                if step == 0 and dropping.behind is not None:
                    inside = self._inside(decider, prefix, dropping.behind)
                    noise = forward.predict(step, prefix, inside.asked, sample, watching)
                    decision, mask = inside.taken
                    kept.append(mask)
                else:
                    kept.append(self._kept(decision, prefix, step))
                    noise = forward.predict(step, prefix, kept[-1], sample, watching)
                with self.clock.stage("denoise", step):
                    sample = self.policy.advance(sample, noise, step)
                samples.append(sample)
                if tap is not None and step == 0:
                    seen: Seen = None
                    with self.clock.stage("observe"):
                        tap.launch(now=decider.watches)
                        if decider.watches:
                            observables = self._observables(tap, prefix, kept[0])
                            seen = reduced(self.config, observables, self.shape)
                    if decider.watches and decider.mode != "in_network":
                        decision = decider.after(seen, kept[0], _followed(prefix), decision)
                    tap.follow()
                    if not self._takes_later:
                        tapped.close()
        with self.clock.stage("decode", passes - 1):
            action = self.policy.read_out(sample).cpu().numpy()
        captured: Captured | Deferred = Captured()
        if tap is not None:
            captured = self._deferred(tap, first, kept[0], observables)
            if decider.watches or self._remembers or not tap.can_wait:
                with self.clock.stage("observe", passes - 1):
                    captured = captured.get()
        if decider.mode == "in_network":
            decider.remember(self._whole(captured) if isinstance(captured, Captured) else None)
        return StepResult(
            action=action,
            samples=torch.stack(samples).float().cpu().numpy(),
            kept=np.stack(kept),
            decision=decision,
            pruned_from=decider.governs_from if decision.pruned else passes,
            layout=self.tokens.layout,
            text_ids=self.tokens.text_ids.cpu().numpy(),
            memory=decider.memory,
            times_ns=self.clock.times_ns,
            wall_ns=self.clock.elapsed_ns(),
            captured=captured,
            encoded=tuple(_pass_record(one, with_rows=self.options.encoded == "rows") for one in self.encoded),
            whole_share=dropping.whole_share,
        )

    def _forward(self, dropping: Dropping) -> PassForward | SharingForward:
        kind = CachedForward if self.config.reuse.kind == "prefix_kv" else FullForward
        forward: PassForward = kind(self.policy, self.tokens.layout, self.clock, dropping, self.options.beside)
        shared, recording = self.options.shared, self.options.capture is not None
        if shared is None or recording or dropping.behind is not None or dropping.cut_cache:
            return forward
        return SharingForward(forward, shared, self._starts)

    def _encode(self, step: int) -> Prefix:
        """The prefix of pass `step`: encoded once per pass, or once per step where the encoders' output is reused."""
        reused = self.config.reuse.kind in {"encoders", "prefix_kv"}
        if self.prefix is not None and (reused or self.encoded_pass == step):
            return self.prefix
        self.encoded_pass = step
        with self.clock.stage("encode", step):
            self.prefix = self._matched(self.policy.embed_prefix(self.tokens, self._starts(step)))
        if self.options.encoded != "none":
            self.encoded.append(self.prefix)  # read when the step is over: on a GPU that would wait for the device
        return self.prefix

    def _starts(self, step: int) -> tuple[int, ...]:
        """FPS starts that pass `step` is encoded from."""
        return tuple(int(start) for start in self.draws.fps_starts[0 if self.config.reuse.fps == "pinned" else step])

    def _matched(self, prefix: Prefix) -> Prefix:
        """`prefix` with the nearest patch of every point, if the pruner's correspondence asks for it."""
        reduction = getattr(self.config.pruner, "reduction", None)
        if prefix.alignment is None or prefix.centres is None or getattr(reduction, "correspondence", "") != "nearest":
            return prefix
        centres = prefix.centres.cpu().numpy()
        nearest = nearest_patches(centres, prefix.alignment.patch, prefix.cameras)
        return replace(prefix, alignment=replace(prefix.alignment, nearest=nearest))

    def _kept(self, decision: Decision, prefix: Prefix, step: int) -> npt.NDArray[np.bool_]:
        """(N_visual,) visual tokens of pass `step`: all before the decision; points follow their patch in this pass."""
        if not decision.pruned:
            return np.ones(self.shape.n_2d + self.shape.n_3d, bool)
        with self.clock.stage("fuse", step):
            if prefix.alignment is None:
                return decision.keep_2d
            drawn_as = 0 if self.config.reuse.fps == "pinned" else step
            points = point_mask(decision, prefix.alignment.followed, drawn_as, self.key)
            return np.concatenate([decision.keep_2d, points])

    def _inside(self, decider: Decider, prefix: Prefix, layer: int) -> InsideDecision:
        def observe(tap: AttentionTap) -> Observables:
            with self.clock.stage("observe"):
                return self._observables(tap, prefix, None)

        return InsideDecision(
            decider,
            self.policy.backbone,
            self.tokens.layout,
            layer,
            needed_capture(self.config),
            observe,
            lambda decision: self._kept(decision, prefix, 0),
        )

    @property
    def _remembers(self) -> bool:
        """Whether a pruner that decides inside the network must be shown the whole step."""
        method = self.config.method
        return method.observes == "in_network" and method.initial_state(self.config.pruner, self.shape) is not None

    @property
    def _takes_later(self) -> bool:
        recording = self.options.capture
        needed = self._remembers and needed_capture(self.config).later_action_rows
        return needed or (recording is not None and recording.later_action_rows)

    def _tap(self, decider: Decider) -> AttentionTap | None:
        """What the recording and the pruner want to see of the whole step; None where neither wants anything."""
        spec = self.options.capture
        if self._remembers or (decider.watches and decider.mode != "in_network"):
            spec = needed_capture(self.config).merged(spec)
        if spec is None:
            return None
        head = vocabulary_head(self.policy) if "logits" in spec.norms else None
        return AttentionTap(self.policy.backbone, self.tokens.layout, spec.groups, spec, head)

    def _deferred(
        self, tap: AttentionTap, prefix: Prefix, kept: npt.NDArray[np.bool_], observables: Observables | None
    ) -> Deferred:
        """What the tap saw; its arithmetic is the recording's, and the control loop need not wait for it."""

        @torch.inference_mode()
        def take() -> Captured:
            later = tap.received_later
            return Captured(
                observables=observables or self._observables(tap, prefix, kept),
                action_rows=None if later is None else later.numpy(),
                extras={name: values.numpy() for name, values in tap.extras.items()},
                hooks_ns=np.array(tap.hooks_ns, np.int64),
                reduction_ns=tap.reduction_ns,
            )

        return Deferred(take, self.policy)

    @staticmethod
    def _whole(captured: Captured) -> Observables | None:
        """The step's observables with what the later passes showed."""
        if captured.observables is None or captured.action_rows is None:
            return captured.observables
        return replace(captured.observables, attention_action=captured.action_rows)

    def _observables(self, tap: AttentionTap, prefix: Prefix, kept: npt.NDArray[np.bool_] | None) -> Observables:
        method, rows = self.config.method, None
        if method.reads == "observables" and "embeddings" in method.requires(self.config.pruner):
            visual = torch.from_numpy(self.tokens.layout.visual_positions).to(prefix.rows.device)
            rows = prefix.rows[visual].float().cpu().numpy()
        return observables_of(
            tap,
            _patch(prefix),
            nearest_patch=None if prefix.alignment is None else prefix.alignment.nearest,
            kept=kept,
            centres=None if prefix.centres is None else prefix.centres.cpu().numpy(),
            embeddings=rows,
            sensed=self.sensed,
        )


def _patch(prefix: Prefix) -> npt.NDArray[np.int32] | None:
    return None if prefix.alignment is None else prefix.alignment.patch


def _followed(prefix: Prefix) -> npt.NDArray[np.int32] | None:
    return None if prefix.alignment is None else prefix.alignment.followed


def _pass_record(prefix: Prefix, *, with_rows: bool) -> PassRecord:
    rows = prefix.rows.float().cpu().contiguous().numpy()
    return PassRecord(
        centres=None if prefix.centres is None else prefix.centres.cpu().numpy(),
        patch=_patch(prefix),
        rows=rows if with_rows else None,
        digest=None if with_rows else rows_digest(rows),
    )
