"""Prunes a policy that is not ours while it runs: rows are dropped after fusion, and the rest keep their positions.

The masks come from the pruners that the engine uses, decided at the same places of the control step: with `observe =
current`, pass 0 runs unpruned and is observed, the later passes are pruned; a pruner that observes nothing prunes all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recorders.attach_layout import layout_of, visual_layout
from recorders.attach_passes import Feed, PassSeen, PassWatch, locate, patches_of, wrapped
from recorders.sites import find_sites, resolve
from tracekit.capture import GROUPS, AttentionTap
from tracekit.config import Configuration
from tracekit.engine import decision_shape, observables_of
from tracekit.errors import ConfigError, PolicyError
from tracekit.pruning import Decision, DecisionKey, Shape, point_mask, reduce

__all__ = ["LivePruning", "PrunedStep", "prune_live"]


@dataclass(frozen=True, slots=True)
class PrunedStep:
    """What was dropped in one control step.

    `kept`: (passes, N_visual) bool, image tokens then point tokens, as in `tracekit.engine.StepResult`. `decision`:
    what the pruner answered; it governs the passes from `pruned_from` on (as many as there are: nothing was pruned).
    """

    kept: npt.NDArray[np.bool_]
    decision: Decision
    pruned_from: int


def prune_live(
    policy: object,
    config: Configuration,
    *,
    views: Sequence[str] = ("front",),
    sites: Mapping[str, Any] | None = None,
) -> LivePruning:
    """Prune every control step of `policy` under `config` from now on, until the answer is removed or its block ends.

    `views` and `sites` as in `recorders.attach`. Raises PolicyError for a policy that cannot be pruned from outside,
    ConfigError for what it cannot do: the policy recomputes everything in every pass and draws its own FPS starts.
    """
    return LivePruning(policy, config, tuple(views), sites)


class LivePruning:
    """Made by `prune_live`. Call `reset` at the start of every episode: pruners remember earlier steps.

    `last`: the last control step. `memory`: the pruner's state after it.
    """

    def __init__(
        self, policy: object, config: Configuration, views: tuple[str, ...], sites: Mapping[str, Any] | None
    ) -> None:
        found = find_sites(policy, sites)
        if found.fuse is None:
            raise PolicyError(
                f"{type(policy).__name__} has no get_fused_tokens beside {found.action!r}; give the method that "
                "returns the visual rows as fuse="
            )
        _refuse(config)
        self.last: PrunedStep | None = None
        self.memory: Any = None
        self._config, self._views = config, views
        self._backbone = resolve(policy, found.backbone)
        self._observes = config.method.observes == "forward"
        self._uid, self._step = 0, 0
        self._step_state = _StepState()
        watch = PassWatch(policy, found, self)
        self._installed = ExitStack()
        with ExitStack() as stack:
            stack.callback(watch.remove)
            watch.install()
            stack.enter_context(wrapped(policy, found.predict, self._around(watch)))
            self._installed = stack.pop_all()

    def reset(self, episode_uid: int) -> None:
        """Start the episode `episode_uid` (uint64, what the pruner's random draws are keyed by)."""
        self._uid, self._step, self.memory, self.last = episode_uid, 0, None, None

    def remove(self) -> None:
        """Leave the policy exactly as it was. Removing twice is fine."""
        self._installed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _around(self, watch: PassWatch) -> Callable[..., Any]:
        def predict(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            watch.restart()
            memory, self._step_state = self.memory, _StepState()
            self._step += 1
            try:
                action = original(*args, **kwargs)
            except BaseException:
                self.memory, self._step = memory, self._step - 1  # a step that failed leaves nothing behind
                raise
            self._finish()
            return action

        return predict

    def fused(self, seen: PassSeen, result: Any) -> Any:
        """The fuse method's result without the rows that this pass drops."""
        now = self._step_state
        if now.shape is None:
            now.shape = decision_shape(visual_layout(seen, self._views))
            if self.memory is None:
                self.memory = self._config.method.initial_state(self._config.pruner, now.shape)
        parts = list(result) if isinstance(result, tuple) else [result]
        patch = _patches(parts, now.shape)
        if not self._observes and now.decision is None:
            self._decide(None, patch)
        rows = parts[0][0]
        kept = self._kept(patch, seen.index)
        now.kept.append(kept)
        mask = np.ones(len(rows), np.bool_)
        mask[_visual_rows(seen, rows)] = kept
        now.rows = torch.from_numpy(np.flatnonzero(mask)).to(rows.device)
        now.total, now.left = len(rows), rows
        seen.dropped = not bool(mask.all())
        if not seen.dropped:
            return result
        now.left = rows.index_select(0, now.rows)
        parts[0] = now.left[None]
        return tuple(parts) if isinstance(result, tuple) else parts[0]

    def feed(self, seen: PassSeen) -> Feed | None:
        """Observe pass 0 where the pruner needs it; give rows after a gap their positions of the unpruned sequence."""
        now = self._step_state
        if seen.rows is None or now.left is None or now.rows is None:
            raise PolicyError("the backbone ran before the visual rows were fused; correct the site fuse=")
        if seen.dropped:
            return Feed(_positions(seen, now.left, now.rows, now.total), inject=True)
        if not self._observes or seen.index:
            return None
        tap = AttentionTap(self._backbone, layout_of(seen, self._views), GROUPS)
        return Feed(torch.arange(len(seen.rows)), tap)

    def passed(self, seen: PassSeen) -> None:
        """After pass 0, decide what the later passes drop."""
        now = self._step_state
        if seen.tap is None or seen.index or now.shape is None:
            return
        observables = observables_of(seen.tap, seen.patch)
        reads_scores = self._config.method.reads == "scores"
        self._decide(
            reduce(observables, self._config.reduction, now.shape) if reads_scores else observables, seen.patch
        )

    def _decide(self, seen: Any, patch: npt.NDArray[np.int32] | None) -> None:
        now, method = self._step_state, self._config.method
        now.decision, self.memory = method.decide(
            seen, self.memory, self._config.pruner, self._key, now.shape, patch=patch
        )

    @property
    def _key(self) -> DecisionKey:
        return DecisionKey(int(getattr(self._config.pruner, "seed", 0)), self._uid, self._step)

    def _kept(self, patch: npt.NDArray[np.int32] | None, index: int) -> npt.NDArray[np.bool_]:
        """(N_visual,) visual tokens of pass `index`: all before the decision; points follow their patch in it."""
        decision, shape = self._step_state.decision, self._step_state.shape
        if shape is None or decision is None or not decision.pruned:
            return np.ones(0 if shape is None else shape.n_2d + shape.n_3d, np.bool_)
        if patch is None:
            return decision.keep_2d
        return np.concatenate([decision.keep_2d, point_mask(decision, patch, index, self._key)])

    def _finish(self) -> None:
        now = self._step_state
        if now.decision is None or (self._observes and len(now.kept) < 2):
            raise ConfigError(
                f'observe.mode = "current" needs at least 2 denoise passes and this policy ran {len(now.kept)}: pass 0 '
                "is the one observed, unpruned"
            )
        pruned_from = len(now.kept) if not now.decision.pruned else int(self._observes)
        self.last = PrunedStep(np.stack(now.kept), now.decision, pruned_from)


class _StepState:
    """What one control step carries from pass to pass."""

    def __init__(self) -> None:
        self.shape: Shape | None = None
        self.decision: Decision | None = None
        self.kept: list[npt.NDArray[np.bool_]] = []
        self.rows: Tensor | None = None  # indices of the fused rows that are left
        self.left: Tensor | None = None  # those rows
        self.total = 0  # fused rows, unpruned


def _refuse(config: Configuration) -> None:
    if config.reuse.kind != "none" or config.reuse.fps != "recorded":
        raise ConfigError(
            f'reuse.kind = "{config.reuse.kind}", reuse.fps = "{config.reuse.fps}": the policy runs its encoders and '
            'the whole sequence in every pass and draws its own FPS starts; set kind = "none" and fps = "recorded"'
        )
    if config.method.observes == "forward" and config.observe.mode != "current":
        raise ConfigError(f'observe.mode = "{config.observe.mode}": from outside only "current" can prune; set that')
    if config.method.observes not in {"none", "forward"}:
        raise ConfigError(f"pruner {config.kind!r} acts inside the network and cannot prune from outside; replay it")
    if config.execution.drop != "rows":
        raise ConfigError(f'execution.drop = "{config.execution.drop}": live, rows are dropped; set drop = "rows"')


def _patches(parts: Sequence[Any], shape: Shape) -> npt.NDArray[np.int32] | None:
    """(N_3D,) patches from the correspondence that the fuse method returns beside the rows; None without points."""
    if not shape.n_3d:
        return None
    tensors = [part for part in parts[1:] if isinstance(part, Tensor)]
    cells = [part for part in tensors if part.shape == (1, shape.n_3d, 2) and not part.is_floating_point()]
    valid = [part for part in tensors if part.shape == (1, shape.n_3d) and part.dtype == torch.bool]
    if not cells or not valid:
        raise PolicyError(
            f"the fuse method returns no correspondence beside its rows: (1, {shape.n_3d}, 2) rows and columns and "
            f"(1, {shape.n_3d}) flags are needed to know which points a patch has"
        )
    return patches_of(cells[0], valid[0])


def _visual_rows(seen: PassSeen, rows: Tensor) -> npt.NDArray[np.int64]:
    """(N_visual,) places of the image tokens, view after view, then of the point tokens among the fused rows."""
    taken = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    places: list[npt.NDArray[np.int64]] = []
    for site in ("image", "point"):
        for block in seen.blocks.get(site, []):
            start = locate(rows, block, taken)
            if start is None:
                raise PolicyError(f"the outputs of site {site!r} are not among the fused rows; correct the site")
            taken[start : start + len(block)] = True
            places.append(np.arange(start, start + len(block)))
    return np.concatenate(places)


def _positions(seen: PassSeen, left: Tensor, kept: Tensor, total: int) -> Tensor:
    """(n,) positions in the unpruned sequence of the rows that the backbone is fed in a pruned pass."""
    rows = seen.rows
    if rows is None:
        raise PolicyError("the backbone was fed no rows; correct its site")
    start = locate(rows, left) if len(left) else locate(rows, seen.blocks["text"][0][1:2])
    if start is None:
        raise PolicyError("the fused rows are not among those that the backbone was fed; the policy cannot be pruned")
    before = torch.arange(start, device=kept.device)
    after = torch.arange(start + total, total + len(rows) - len(left), device=kept.device)
    return torch.cat([before, start + kept, after])
