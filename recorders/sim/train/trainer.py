"""One training step after another: the part of training that is arithmetic."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from recorders.sim.train.batches import Batch, Frames, make_batch
from recorders.sim.train.forward import Hidden, draw_noise, forward_batch
from recorders.sim.train.losses import WEIGHTS, AuxiliaryHeads, auxiliary_losses, noise_loss
from recorders.sim.train.plan import TrainingPlan
from tracekit.errors import PolicyError
from tracekit.layout import PATCHES_PER_VIEW
from tracekit.model import MLA

__all__ = ["Trainer", "held_out_losses"]

_WARM_UP = 200
_SMOOTHING = 0.999
"""Most that the running average of the weights keeps of itself in one step."""

_DATA, _NOISE, _TOKENS = range(3)

_PART, _BLIND_PART = 8, 64
"""Frames that are run together. Normalisation over a batch is over so many, however many threads there are; without
pictures and clouds there is none, and frames cost little."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Frames `indices` of a step's batch, the `number`-th part of it."""

    number: int
    indices: list[int]


class Trainer:
    """Trains `policy` (float32, unfrozen) on `frames`; `average` holds the running average of its weights.

    All randomness of a step is keyed by the plan's seed and the step, so a run that is taken up goes on as if it had
    never stopped. A batch is run in parts of a fixed size, each on a copy of the policy that shares its weights, so
    that `threads` (torch's own set to 1) run side by side and give what one would.
    """

    def __init__(self, policy: MLA, frames: Frames, plan: TrainingPlan, threads: int = 1) -> None:
        self.policy, self.frames, self.plan, self.threads = policy, frames, plan, threads
        with torch.random.fork_rng():
            torch.manual_seed(plan.seed)
            self.heads = AuxiliaryHeads(policy.config)
        self.average = copy.deepcopy(policy).eval().requires_grad_(requires_grad=False)
        self._whole = whole = nn.ModuleList([policy, self.heads])
        self._size = _BLIND_PART if plan.blind else _PART
        self._parts = [_sharing(whole) for _ in range(math.ceil(plan.batch / self._size))]
        parameters = list(whole.parameters())
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.01},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.98))
        self.step = 0

    def run(self) -> Iterator[dict[str, float]]:
        """Take the steps that are left, yielding losses by name.

        Raises PolicyError where a loss is not finite, before it has changed a weight.
        """
        with ThreadPoolExecutor(self.threads) as workers:
            while self.step < self.plan.steps:
                yield self._take(workers)

    def state(self) -> dict[str, Any]:
        """Everything that a later run needs to go on."""
        return {
            "step": self.step,
            "policy": self.policy.state_dict(),
            "average": self.average.state_dict(),
            "heads": self.heads.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self.step = int(state["step"])
        for module, name in ((self.policy, "policy"), (self.average, "average"), (self.heads, "heads")):
            module.load_state_dict(state[name])
        self.optimiser.load_state_dict(state["optimiser"])

    def _take(self, workers: ThreadPoolExecutor) -> dict[str, float]:
        drawn = self._drawn()
        shares = [len(part.indices) / self.plan.batch for part in drawn]
        parts = list(workers.map(self._part_losses, self._parts, drawn))
        losses = {name: sum(s * part[name] for s, part in zip(shares, parts, strict=True)) for name in parts[0]}
        total = sum(WEIGHTS.get(name, 1.0) * loss for name, loss in losses.items())
        if not math.isfinite(total):
            wrong = ", ".join(name for name, loss in losses.items() if not math.isfinite(loss))
            raise PolicyError(
                f"training step {self.step + 1}: {wrong} not finite; start from sound weights, or with "
                "another --seed in another --out"
            )
        rate = self._learning_rate()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        _gather(self._whole, self._parts, shares)
        nn.utils.clip_grad_norm_(self._whole.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        self._update_average()
        return {"loss": total, **losses, "learning_rate": rate}

    def _drawn(self) -> list[_Part]:
        indices = self.frames.drawn(self.plan.seed, self.step, self.plan.batch)
        starts = range(0, len(indices), self._size)
        return [_Part(i, indices[start : start + self._size]) for i, start in enumerate(starts)]

    def _part_losses(self, modules: nn.ModuleList, part: _Part) -> dict[str, float]:
        """Losses of `part` by name; their gradients are left in `modules`, a copy of policy and heads."""
        plan, policy, heads = self.plan, cast("MLA", modules[0]), cast("AuxiliaryHeads", modules[1])
        for own, held in zip(modules.buffers(), self._whole.buffers(), strict=True):
            own.copy_(held)
        modules.train().zero_grad(set_to_none=True)
        rng = np.random.default_rng([plan.seed, self.step, _DATA, part.number])
        batch = make_batch(policy, self.frames, part.indices, rng, blind=plan.blind)
        generator = _generator(plan.seed, self.step, _NOISE, part.number)
        noise = draw_noise((len(batch), plan.draws, *policy.action_shape), generator)
        tokens = _generator(plan.seed, self.step, _TOKENS)
        image, points = (
            torch.randperm(count, generator=tokens)[: plan.kept_tokens(self.step, count)].sort().values
            for count in (PATCHES_PER_VIEW, policy.config.point_tokens)
        )
        hidden = forward_batch(policy, batch, noise, image, points)
        losses = _losses(heads, hidden, batch, noise.noise, auxiliary=plan.auxiliary)
        sum((WEIGHTS.get(name, 1.0) * loss for name, loss in losses.items()), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
        return {name: loss.item() for name, loss in losses.items()}

    def _learning_rate(self) -> float:
        """Linear warm-up, then half a cosine down to zero."""
        warm_up = min(1.0, (self.step + 1) / _WARM_UP)
        return self.plan.learning_rate * warm_up * 0.5 * (1 + math.cos(math.pi * self.step / self.plan.steps))

    @torch.no_grad()
    def _update_average(self) -> None:
        share = 1 - min(_SMOOTHING, (1 + self.step) / (10 + self.step))
        for slow, fast in zip(self.average.parameters(), self.policy.parameters(), strict=True):
            slow.lerp_(fast, share)
        for held, present in zip(self.average.buffers(), self.policy.buffers(), strict=True):
            held.copy_(present)


@torch.no_grad()
def held_out_losses(
    policy: MLA, heads: AuxiliaryHeads, frames: Frames, plan: TrainingPlan, count: int
) -> dict[str, float]:
    """Losses of `policy` on `count` frames of `frames`, with all tokens, the same frames and noise at every call.

    Few frames make a noisy figure: it compares weights on the same frames and says little by itself. `heads` are those
    of the moment beside averaged weights, so the auxiliary losses are somewhat higher than averaged heads would give.
    """
    policy.eval()
    sums: dict[str, float] = {}
    indices = np.random.default_rng(0).permutation(len(frames))[:count].tolist()
    for start in range(0, len(indices), plan.batch):
        chosen = indices[start : start + plan.batch]
        batch = make_batch(policy, frames, chosen, np.random.default_rng([0, start]), blind=plan.blind)
        noise = draw_noise((len(batch), plan.draws, *policy.action_shape), _generator(0, start, _NOISE))
        image, points = (
            torch.arange(0 if plan.blind else tokens) for tokens in (PATCHES_PER_VIEW, policy.config.point_tokens)
        )
        hidden = forward_batch(policy, batch, noise, image, points)
        for name, loss in _losses(heads, hidden, batch, noise.noise, auxiliary=plan.auxiliary).items():
            sums[name] = sums.get(name, 0.0) + loss.item() * len(chosen) / len(indices)
    return sums


def _sharing(modules: nn.ModuleList) -> nn.ModuleList:
    """A copy of `modules` with the same weights in memory, and gradients and buffers of its own."""
    copied = copy.deepcopy(modules)
    for own, shared in zip(copied.parameters(), modules.parameters(), strict=True):
        own.data = shared.data
    return copied


@torch.no_grad()
def _gather(whole: nn.ModuleList, parts: Sequence[nn.ModuleList], shares: Sequence[float]) -> None:
    """Give `whole` the weighted mean of the gradients of `parts` and of what their buffers became, in a fixed order."""
    for parameter, *copies in zip(whole.parameters(), *(part.parameters() for part in parts), strict=True):
        known = [share * own.grad for share, own in zip(shares, copies, strict=True) if own.grad is not None]
        parameter.grad = torch.stack(known).sum(0) if known else None
    for buffer, *copies in zip(whole.buffers(), *(part.buffers() for part in parts), strict=True):
        if torch.equal(buffer, copies[0]):
            continue
        if buffer.is_floating_point():
            buffer.copy_(torch.stack([share * own for share, own in zip(shares, copies, strict=True)]).sum(0))
        else:
            buffer.copy_(copies[0])


def _losses(
    heads: AuxiliaryHeads, hidden: Hidden, batch: Batch, noise: Tensor, *, auxiliary: bool
) -> dict[str, Tensor]:
    losses = {"noise": noise_loss(hidden, noise)}
    return losses | auxiliary_losses(heads, hidden, batch.labels) if auxiliary else losses


def _generator(*key: int) -> torch.Generator:
    """A generator whose stream depends on `key` alone."""
    seed = np.random.SeedSequence(key).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(seed[0]) << 32 | int(seed[1]))
