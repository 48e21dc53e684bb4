"""Which rows of a policy that is not ours are dropped in a pass, decided as the engine decides, and where others go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recorders.attach_layout import visual_layout
from recorders.attach_passes import PassSeen, locate, patches_of
from recorders.sites import Sites
from tracekit.config import Configuration
from tracekit.engine import Decider, decision_shape, reduced
from tracekit.errors import ConfigError, PolicyError
from tracekit.pruning import Decision, DecisionKey, Observables, Shape, point_mask

__all__ = ["PrunedRows", "PrunedStep"]

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class PrunedStep:
    """What was dropped in one control step.

    `kept`: (passes, N_visual) bool, image tokens then point tokens, as in `tracekit.engine.StepResult`. `decision`:
    what the pruner answered; it governs the passes from `pruned_from` on (as many as there are: nothing was pruned).
    `memory`: of the run after the step.
    """

    kept: Mask
    decision: Decision
    pruned_from: int
    memory: Any


class PrunedRows:
    """Drops rows of every pass after fusion, under `config`, and carries the pruner's memory through an episode."""

    def __init__(self, policy: object, sites: Sites, config: Configuration, views: Sequence[str]) -> None:
        if sites.fuse is None:
            raise PolicyError(
                f"{type(policy).__name__} has no get_fused_tokens beside {sites.action!r}; give the method that "
                "returns the visual rows as fuse="
            )
        _refuse(config)
        self.memory: Any = None
        self._config, self._views = config, tuple(views)
        self._uid, self._step = 0, 0
        self._now = _Now()

    def reset(self, episode_uid: int) -> None:
        """Start the episode `episode_uid` (uint64, what the pruner's random draws are keyed by)."""
        self._uid, self._step, self.memory = episode_uid, 0, None

    @contextmanager
    def step(self) -> Iterator[Self]:
        """Around one control step; one that fails leaves nothing behind."""
        self._now = _Now()
        self._step += 1
        memory = self.memory
        try:
            yield self
        except BaseException:
            self.memory, self._step = memory, self._step - 1
            raise

    def finish(self) -> PrunedStep:
        """What was dropped in the step, whose passes have all run; ConfigError if there were too few to prune any."""
        now, decider = self._now, self._now.decider
        if decider is None or now.decision is None or (decider.mode == "current" and len(now.kept) < 2):
            raise ConfigError(
                f'observe.mode = "current" needs at least 2 denoise passes and this policy ran {len(now.kept)}: pass 0 '
                "is the one observed, unpruned"
            )
        self.memory = decider.memory
        pruned_from = decider.governs_from if now.decision.pruned else len(now.kept)
        return PrunedStep(np.stack(now.kept), now.decision, pruned_from, self.memory)

    def watches(self, seen: PassSeen) -> bool:
        """Whether the pruner must be shown this pass."""
        return seen.index == 0 and self._now.decider is not None and self._now.decider.watches

    @property
    def kept_now(self) -> Mask:
        """(N_visual,) tokens of the pass that runs."""
        return self._now.kept[-1]

    def fused(self, seen: PassSeen, result: Any) -> Any:
        """The fuse method's result without the rows that this pass drops."""
        now = self._now
        if now.shape is None:
            now.shape = decision_shape(visual_layout(seen, self._views))
        parts = list(result) if isinstance(result, tuple) else [result]
        patch = _patches(parts, now.shape)
        if now.decider is None:
            now.decider = Decider(self._config, self._key, now.shape, self.memory)
            now.decision = now.decider.before(patch)
        rows = parts[0][0]
        kept = self._kept(patch, seen.index)
        now.kept.append(kept)
        mask = np.ones(len(rows), np.bool_)
        mask[_visual_rows(seen, rows)] = kept
        now.index = torch.from_numpy(np.flatnonzero(mask)).to(rows.device)
        now.rows, now.left = rows, rows
        seen.dropped = not bool(mask.all())
        if not seen.dropped:
            return result
        now.left = rows.index_select(0, now.index)
        parts[0] = now.left[None]
        return tuple(parts) if isinstance(result, tuple) else parts[0]

    def place(self, seen: PassSeen) -> Tensor:
        """(n,) positions in the unpruned sequence of the rows that the backbone is fed.

        Also restores `seen.whole`, the rows of the unpruned sequence. Raises PolicyError where the fused rows are not
        among those fed.
        """
        now = self._now
        if seen.rows is None or now.left is None or now.rows is None or now.index is None:
            raise PolicyError("the backbone ran before the visual rows were fused; correct the site fuse=")
        if not seen.dropped:
            return torch.arange(len(seen.rows))
        left = now.left
        start = locate(seen.rows, left) if len(left) else locate(seen.rows, seen.blocks["text"][0][1:2])
        if start is None:
            raise PolicyError(
                "the fused rows are not among those that the backbone was fed; the policy cannot be pruned"
            )
        total, behind = len(now.rows), seen.rows[start + len(left) :]
        seen.whole = torch.cat([seen.rows[:start], now.rows.to(seen.rows.dtype), behind])
        before = torch.arange(start, device=now.index.device)
        after = torch.arange(start + total, len(seen.whole), device=now.index.device)
        return torch.cat([before, start + now.index, after])

    def show(self, seen: PassSeen, observables: Observables) -> None:
        """After pass 0, decide what the later passes drop, from what it showed of the tokens that were kept."""
        now = self._now
        if now.decider is None or now.shape is None or now.decision is None:
            raise PolicyError("a pass ended before its visual rows were fused; correct the site fuse=")
        shown = reduced(self._config, observables, now.shape)
        now.decision = now.decider.after(shown, self.kept_now, seen.patch, now.decision)

    @property
    def _key(self) -> DecisionKey:
        return DecisionKey(int(getattr(self._config.pruner, "seed", 0)), self._uid, self._step)

    def _kept(self, patch: npt.NDArray[np.int32] | None, index: int) -> Mask:
        """(N_visual,) visual tokens of pass `index`: all before the decision; points follow their patch in it."""
        decision, shape = self._now.decision, self._now.shape
        if shape is None or decision is None or not decision.pruned:
            return np.ones(0 if shape is None else shape.n_2d + shape.n_3d, np.bool_)
        if patch is None:
            return decision.keep_2d
        return np.concatenate([decision.keep_2d, point_mask(decision, patch, index, self._key)])


class _Now:
    """What one control step carries from pass to pass."""

    def __init__(self) -> None:
        self.shape: Shape | None = None
        self.decider: Decider | None = None
        self.decision: Decision | None = None
        self.kept: list[Mask] = []
        self.index: Tensor | None = None  # of the fused rows that are left
        self.left: Tensor | None = None  # those rows
        self.rows: Tensor | None = None  # all fused rows


def _refuse(config: Configuration) -> None:
    if config.reuse.kind not in {"none", "mask"} or config.reuse.fps != "recorded":
        raise ConfigError(
            f'reuse.kind = "{config.reuse.kind}", reuse.fps = "{config.reuse.fps}": the policy runs its encoders and '
            'the whole sequence in every pass and draws its own FPS starts; set kind = "none" or "mask" and '
            'fps = "recorded"'
        )
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
