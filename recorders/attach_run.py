"""Records a policy that is not ours, unmodified: the MLA release, or another that denoises actions with a LLaMA.

What the policy computes stays bit for bit what it computes alone: fused attention stays on, no random number is drawn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from recorders.action_norm import action_norm
from recorders.attach_generators import generator_states
from recorders.attach_layout import layout_of
from recorders.attach_passes import Feed, PassSeen, PassWatch, wrapped
from recorders.pruned_rows import PrunedRows, PrunedStep
from recorders.recorder import Recorder
from recorders.sites import find_sites, resolve
from tracekit.actions import ActionSpec
from tracekit.capture import AttentionTap, CaptureSpec, vocabulary_head
from tracekit.config import Configuration, ExecutionConfig
from tracekit.digest import digest_arrays, digest_json
from tracekit.engine import (
    Captured,
    PassRecord,
    StepDraws,
    StepOptions,
    StepResult,
    decision_shape,
    keep_everything,
    observables_of,
)
from tracekit.errors import PolicyError
from tracekit.layout import TokenLayout
from tracekit.model.diffusion import alphas, ddim_step
from tracekit.model.release import NOT_FOR_INFERENCE
from tracekit.policy import PolicyIdentity
from tracekit.profiling import STAGES, Stage

__all__ = ["attach"]

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
SUCCESSOR_TOLERANCE = 1e-2
"""How far a noisy action may be from the DDIM successor of the one before (bf16 noise rounds to 0.4 %)."""


@contextmanager
def attach(
    policy: object,
    path: str | Path,
    *,
    action_spec: ActionSpec,
    name: str | None = None,
    identity: PolicyIdentity | None = None,
    views: Sequence[str] = ("front",),
    dtype: Literal["float32", "bfloat16"] | None = None,
    capture: CaptureSpec | None = None,
    prune: Configuration | None = None,
    source: Mapping[str, Any] | None = None,
    sites: Mapping[str, Any] | None = None,
) -> Iterator[Recorder]:
    """Within the block, record every control step that `policy` takes inside an `episode.step(...)` into trace `path`.

    `action_spec`: meaning of its actions and states. `views`: names of its images in sequence order. `dtype`: of its
    projections, where autocast makes it another than the weights'. `sites`: paths of `recorders.sites.Sites` that
    are not found by themselves. `identity`: of the loaded policy that will replay the trace, so that the replay finds
    its weights; by default made of `name`, the backbone's configuration and the weights. `capture`, `source`: as in
    `Recorder`; `action_norm` is added to the latter. `prune`: also prune it, as `prune_live` does; the trace then has
    masks, reasons and memory, and is of kind `pruned_live`. The initial noise is that of the first pass; the schedule
    must be the release's (DDIM, eta 0).

    Raises PolicyError (one line) for a policy that cannot be observed, TraceError where the trace cannot be written.
    """
    found = find_sites(policy, sites)
    backbone: nn.Module = resolve(policy, found.backbone)
    weight = next(module for key, module in backbone.named_modules() if key.endswith("q_proj")).weight
    owner = resolve(policy, found.forward.rpartition(".")[0]) if "." in found.forward else policy
    identity = _identity(name or type(policy).__name__, owner, backbone, identity)
    execution = ExecutionConfig(dtype=dtype or _dtype(weight), threads=torch.get_num_threads())  # type: ignore[arg-type]  # checked by _dtype
    config = Configuration(execution=execution) if prune is None else replace(prune, execution=execution)
    rows = None if prune is None else PrunedRows(policy, found, config, views)
    run = _Run(_Described(identity, action_spec), config, owner, backbone, tuple(views), rows)
    watch = PassWatch(policy, found, run)
    described = {**(source or {}), "action_norm": action_norm(resolve(policy, found.head))}
    with ExitStack() as stack:
        stack.callback(watch.remove)
        watch.install()
        stack.enter_context(wrapped(policy, found.predict, run.around(watch)))
        yield stack.enter_context(Recorder(path, run, capture, source=described))  # last: a refusal leaves no trace


@dataclass(frozen=True, slots=True)
class _Described:
    """What a trace says of the policy."""

    identity: PolicyIdentity
    action_spec: ActionSpec


class _Run:
    """The steps of an attached policy, in the shape that the recorder records; see `recorders.recorder.Recordable`."""

    def __init__(
        self,
        policy: _Described,
        config: Configuration,
        owner: object,
        backbone: nn.Module,
        views: tuple[str, ...],
        pruned: PrunedRows | None = None,
    ) -> None:
        self.policy, self.config = policy, config
        self.options = StepOptions()
        self.last: StepResult | None = None
        self.last_draws: StepDraws | None = None
        self.steps = 0
        self._owner, self._backbone, self._views = owner, backbone, views
        self._pruned = pruned
        self._layout: TokenLayout | None = None
        self._passes: list[_Pass] = []

    def reset(self, episode_uid: int) -> None:
        """Start an episode; the policy's draws are its own, the pruner's are keyed by `episode_uid`."""
        if self._pruned is not None:
            self._pruned.reset(episode_uid)
        self.last, self.last_draws, self.steps = None, None, 0

    def around(self, watch: PassWatch) -> Callable[..., Any]:
        """What is wrapped around the policy's `predict`."""

        def predict(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            self._layout, self._passes = None, []
            watch.restart()
            generators = generator_states()
            start = time.perf_counter_ns()
            with nullcontext() if self._pruned is None else self._pruned.step() as step:
                action = original(*args, **kwargs)
                wall_ns = time.perf_counter_ns() - start
                dropped = None if step is None else step.finish()
                self._finish(np.array(action, np.float64, ndmin=2), generators, wall_ns, dropped)
            return action

        return predict

    def fused(self, seen: PassSeen, result: Any) -> Any:
        """Everything stays, or what the pruner keeps."""
        return result if self._pruned is None else self._pruned.fused(seen, result)

    def feed(self, seen: PassSeen) -> Feed | None:
        """Read the layout off the first pass; tap the passes that are captured."""
        if seen.rows is None:
            return None
        positions = torch.arange(len(seen.rows)) if self._pruned is None else self._pruned.place(seen)
        whole = len(seen.rows if seen.whole is None else seen.whole)
        if self._layout is None:
            self._layout = layout_of(seen, self._views)
        elif whole != self._layout.length:
            raise PolicyError(
                f"pass {seen.index} feeds {whole} rows, pass 0 fed {self._layout.length}; record the policy unpruned, "
                "or give the pruning's configuration as prune="
            )
        capture = self.options.capture or CaptureSpec.minimal()
        if seen.index and not capture.later_action_rows:
            return Feed(positions, inject=True) if seen.dropped else None
        groups = capture.groups if seen.index == 0 else ("action",)
        spec = capture if seen.index == 0 else None
        head = vocabulary_head(self._owner) if spec is not None and "logits" in spec.norms else None
        tap = AttentionTap(self._backbone, self._layout, groups, spec, head)
        return Feed(positions, tap, inject=seen.dropped)

    def passed(self, seen: PassSeen) -> None:
        """Take what the trace stores out of the pass, and let go of the rest."""
        layout = self._layout
        if layout is None or seen.rows is None or seen.noise is None or seen.text_ids is None:
            raise PolicyError("a denoise pass ended before the backbone ran; correct the sites")
        if self._pruned is not None and seen.tap is not None and self._pruned.watches(seen):
            self._pruned.show(seen, observables_of(seen.tap, seen.patch, kept=self._pruned.kept_now))
        whole = seen.rows if seen.whole is None else seen.whole
        prefix = whole[: layout.prefix_length].float().cpu().contiguous().numpy()
        points = len(layout.point_positions)
        if points and (seen.centres is None or seen.patch is None or len(seen.patch) != points):
            raise PolicyError(
                f"the policy has {points} point tokens, but their centres or patches were not seen; give the site "
                "centres=, and see that the correspondence reaches the language model by keyword"
            )
        self._passes.append(
            _Pass(
                sample=seen.sample.cpu(),
                timestep=seen.timestep,
                noise=seen.noise.cpu(),
                fps_starts=tuple(seen.fps_starts),
                text_ids=seen.text_ids.cpu().numpy(),
                record=PassRecord(
                    centres=seen.centres.float().cpu().numpy() if points and seen.centres is not None else None,
                    patch=seen.patch if points else None,
                    rows=prefix,
                ),
                tap=seen.tap,
                times_ns=dict(seen.times_ns),
            )
        )

    def _finish(
        self,
        action: npt.NDArray[np.float64],
        generators: dict[str, npt.NDArray[np.uint8]],
        wall_ns: int,
        dropped: PrunedStep | None,
    ) -> None:
        passes, layout = self._passes, self._layout
        if not passes or layout is None:
            raise PolicyError("the policy predicted an action without a denoise pass; give its site forward=")
        size = self.policy.action_spec.size
        if action.shape[1] != size or passes[0].sample.shape[1] != size:
            raise PolicyError(
                f"the policy's actions have {action.shape[1]} numbers, action_spec "
                f"({self.policy.action_spec.rotation_form}) has {size}; give the spec of this policy"
            )
        tapped = [one.tap for one in passes if one.tap is not None]
        ran = DTYPES.get(tapped[0].dtype or torch.float32, str(tapped[0].dtype))
        if ran != self.config.execution.dtype:
            raise PolicyError(
                f"the policy's projections ran in {ran}, not in {self.config.execution.dtype} as its weights are; "
                f'if autocast is meant to be on, pass dtype="{ran}"'
            )
        if dropped is None:
            everything = np.ones((len(passes), len(layout.visual_positions)), np.bool_)
            dropped = PrunedStep(everything, keep_everything(decision_shape(layout)), len(passes), None)
        later = [rows[:, :, 0].mean(1) for rows in (tap.attention for tap in tapped[1:]) if rows is not None]
        self.last = StepResult(
            action=action,
            samples=_samples(passes),
            kept=dropped.kept,
            decision=dropped.decision,
            pruned_from=dropped.pruned_from,
            layout=layout,
            text_ids=passes[0].text_ids,
            memory=dropped.memory,
            times_ns=_times(passes, wall_ns),
            wall_ns=wall_ns,
            captured=Captured(
                observables=observables_of(tapped[0], passes[0].record.patch, kept=dropped.kept[0]),
                extras={name: values.numpy() for name, values in tapped[0].extras.items()},
                hooks_ns=np.sum([tap.hooks_ns for tap in tapped], axis=0, dtype=np.int64),
                reduction_ns=sum(tap.reduction_ns for tap in tapped),
                action_rows=torch.stack(later).numpy() if later else None,
            ),
            encoded=tuple(one.record for one in passes),
        )
        self.last_draws = StepDraws(
            noise=passes[0].sample.numpy(),
            fps_starts=np.array([one.fps_starts for one in passes], np.int64).reshape(len(passes), -1),
            generators=generators,
        )
        self.steps += 1
        self._passes = []


@dataclass(frozen=True, slots=True)
class _Pass:
    sample: Tensor
    timestep: int | None
    noise: Tensor
    fps_starts: tuple[int, ...]
    text_ids: npt.NDArray[np.int64]
    record: PassRecord
    tap: AttentionTap | None
    times_ns: dict[Stage, int]


def _samples(passes: Sequence[_Pass]) -> npt.NDArray[np.float32]:
    """(passes, T, A) samples after every pass: each is the next pass's noisy action, the last its DDIM successor.

    The sampler keeps the last one to itself, so it is computed; that the sampler is the one assumed is checked on all
    the others. Raises PolicyError otherwise.
    """
    table = alphas()
    after: list[Tensor] = []
    for index, one in enumerate(passes):
        following = passes[index + 1] if index + 1 < len(passes) else None
        if one.timestep is None or not 0 <= one.timestep < len(table):
            raise PolicyError(
                f"pass {index} runs at diffusion step {one.timestep}; steps 0 to {len(table) - 1} are known"
            )
        later = 1.0 if following is None or following.timestep is None else float(table[following.timestep])
        computed = ddim_step(one.sample, one.noise, float(table[one.timestep]), later)
        if following is not None:
            error = float((computed - following.sample).abs().max() / following.sample.abs().max())
            if error > SUCCESSOR_TOLERANCE:
                raise PolicyError(
                    f"pass {index + 1} starts {error:.1%} away from the DDIM successor of pass {index}; only the "
                    "release's sampler (squared cosine, 100 steps, DDIM, eta 0) can be recorded"
                )
        after.append(computed if following is None else following.sample)
    return torch.stack(after).numpy()


def _times(passes: Sequence[_Pass], wall_ns: int) -> npt.NDArray[np.int64]:
    """(stages, passes) host times; what lies outside the passes (sampler, read-out) counts as the last one's decode."""
    times = np.zeros((len(STAGES), len(passes)), np.int64)
    for index, one in enumerate(passes):
        for stage, spent in one.times_ns.items():
            times[STAGES.index(stage), index] = spent
    times[STAGES.index("decode"), -1] = max(0, wall_ns - int(times.sum()))
    return times


def _dtype(weight: Tensor) -> str:
    if weight.dtype not in DTYPES:
        raise PolicyError(f"the backbone's weights are {weight.dtype}; float32 and bfloat16 can be recorded")
    return DTYPES[weight.dtype]


def _identity(name: str, owner: Any, backbone: nn.Module, given: PolicyIdentity | None) -> PolicyIdentity:
    """The policy's identity; its weights digest leaves out what feeds no action, as loading the checkpoint does."""
    modules: nn.Module = owner if isinstance(owner, nn.Module) else backbone
    tensors = {key: value for key, value in modules.state_dict().items() if not NOT_FOR_INFERENCE.match(key)}
    weights = digest_arrays({key: _array(value) for key, value in tensors.items()})
    if given is not None:
        if given.weights_digest != weights:
            raise PolicyError(
                f"identity {given.name!r} has weights {given.weights_digest[:12]}, the attached policy {weights[:12]}; "
                "load both from the same checkpoint, or leave identity out"
            )
        return given
    config = getattr(backbone, "config", None)
    to_dict = getattr(config, "to_dict", None)
    described = str(backbone) if to_dict is None else to_dict()
    return PolicyIdentity(
        name=name,
        config_digest=digest_json(_plain(described)),
        weights_digest=weights,
        parameters=sum(parameter.numel() for parameter in modules.parameters()),
        trained=True,
    )


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    plain = tensor.detach().cpu()
    array: npt.NDArray[Any] = (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    return array


def _plain(value: Any) -> Any:
    """`value` with everything that JSON does not know as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
