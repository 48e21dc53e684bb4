"""The training objective: noise prediction, and auxiliary predictions that tie words and pixels to places.

The action loss sends no gradient into the last layer's visual rows and teaches only slowly which patch an instruction
speaks of. The auxiliary heads ask for just that; they are thrown away after training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from recorders.sim.palette import PALETTE
from recorders.sim.train.batches import Labels
from recorders.sim.train.demonstrations import LANDMARKS
from recorders.sim.train.forward import Hidden
from tracekit.model import MLAConfig
from tracekit.model.layers import Linear, Mlp, RMSNorm

__all__ = ["WEIGHTS", "AuxiliaryHeads", "auxiliary_losses", "noise_loss"]

WEIGHTS = {
    "place": 1.0,
    "landmarks": 1.0,
    "clean_action": 1.0,
    "pointer": 0.1,
    "future_pointer": 0.05,
    "future_patch": 0.5,
    "future_points": 0.1,
    "colour": 0.1,
    "look": 0.1,
    "look_item": 0.1,
    "look_points": 0.1,
    "nearby": 1.0,
    "nearby_points": 1.0,
}
"""Weight of every auxiliary loss in the sum; the noise prediction has weight 1."""

_PLACE_SCALE, _OFFSET_SCALE = 0.25, 0.05
"""Metres that count as 1 in a squared error."""


class AuxiliaryHeads(nn.Module):
    """Small heads on the backbone's hidden states.

    `place`: image token in the middle of the network -> xyz of what its patch shows. `landmarks`, `clean_action`: state
    row before the last layer -> `LANDMARKS` and the expert's answer. `pointer`: state row -> the patches that show the
    named object, before the last layer and (`future_pointer`) after it. `future_patch`, `future_points`: final visual
    rows -> the next picture's patch and the next cloud nearby, as the release's future generation asks of them.
    `colour`: state row in the middle -> the colour that is named, so that later layers can look for it. Beside them,
    `look` asks the policy itself: in one head of the middle layer the state row is to look at the named object, and in
    others (`look_item`, `look_points`) at what has to be moved. `nearby`: image tokens in the middle that show the
    named object or what has to be moved -> `LANDMARKS` and the expert's answer, as far as one patch can tell: where in
    it something lies, and how it is turned; `nearby_points`: the same of point tokens on what has to be moved.
    """

    def __init__(self, config: MLAConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.middle_norm, self.late_norm = RMSNorm(width, eps), RMSNorm(width, eps)
        self.place = Mlp(width, width, 3)
        self.landmarks = Mlp(width, width, 3 * len(LANDMARKS))
        self.clean_action = Mlp(width, width, config.action_window * config.action_size)
        self.pointer = _Pointer(width)
        self.future_pointer = _Pointer(width)
        self.future_patch = Mlp(width, width, 12)
        self.future_points = Mlp(width, width, 3)
        self.colour = Linear(width, len(PALETTE))
        asked = 3 * len(LANDMARKS) + config.action_window * config.action_size
        self.nearby, self.nearby_points = Mlp(width, width, asked), Mlp(width, width, asked)


class _Pointer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key = Linear(width, width, bias=False), Linear(width, width, bias=False)

    def forward(self, asking: Tensor, rows: Tensor) -> Tensor:
        """(B, D), (B, N, D) -> (B, N) logits."""
        logits: Tensor = torch.einsum("bd,bnd->bn", self.query(asking), self.key(rows)) * rows.shape[-1] ** -0.5
        return logits


def noise_loss(hidden: Hidden, noise: Tensor) -> Tensor:
    """Mean squared error of the predicted noise, the diffusion's objective."""
    return functional.mse_loss(hidden.predicted, noise)


def auxiliary_losses(heads: AuxiliaryHeads, hidden: Hidden, labels: Labels) -> dict[str, Tensor]:
    """Unweighted losses by name, those of `WEIGHTS`.

    For a blind policy two: the others need visual tokens, or prepare a search among them (`colour`).
    """
    state = heads.late_norm(hidden.late_state)
    landmarks = heads.landmarks(state).view_as(labels.landmarks)
    answer = heads.clean_action(state).view_as(labels.action)
    losses = {
        "landmarks": _squared(landmarks, labels.landmarks / _PLACE_SCALE),
        "clean_action": _squared(answer, labels.action),
    }
    if len(hidden.image) == 0:
        return losses
    middle = heads.middle_norm(hidden.middle_image)
    place = heads.place(middle)
    named, item = labels.named[:, hidden.image], labels.item[:, hidden.image]
    visible = named / named.amax(1, keepdim=True).clamp_min(1e-6)
    item_points = labels.item_points[:, hidden.points]
    asked = torch.cat([(labels.landmarks / _PLACE_SCALE).flatten(1), labels.action.flatten(1)], 1)[:, None]
    late = heads.late_norm(hidden.late_image)
    return losses | {
        "place": _squared(place, labels.patch_xyz[:, hidden.image] / _PLACE_SCALE),
        "pointer": _pointed(heads.pointer(state, late), named),
        "future_pointer": _pointed(heads.future_pointer(hidden.final_state, hidden.final_image), named),
        "future_patch": _squared(heads.future_patch(hidden.final_image), labels.next_patch[:, hidden.image]),
        "colour": functional.cross_entropy(heads.colour(heads.middle_norm(hidden.middle_state)), labels.colour),
        "look": _seen(hidden.looked[:, 0], named),
        "look_item": _seen(hidden.looked[:, 1], item),
        "look_points": _seen(hidden.looked_points, item_points),
        "nearby": _squared(heads.nearby(middle), asked, torch.maximum(visible, item)),
        "nearby_points": _squared(heads.nearby_points(heads.middle_norm(hidden.middle_points)), asked, item_points),
        "future_points": _squared(
            heads.future_points(hidden.final_points), labels.next_offset[:, hidden.points] / _OFFSET_SCALE
        ),
    }


def _squared(predicted: Tensor, wanted: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error over the entries of `wanted` that are not NaN; `weights` (B, N) of rows (B, N, …), all 1."""
    known = ~wanted.isnan()
    squared = torch.where(known, predicted - torch.where(known, wanted, 0.0), 0.0).square()
    counted = known.expand_as(predicted).to(predicted.dtype)
    if weights is not None:
        squared, counted = squared * weights[..., None], counted * weights[..., None]
    return squared.sum() / counted.sum().clamp_min(1)


def _pointed(logits: Tensor, named: Tensor) -> Tensor:
    return _seen(logits.log_softmax(1), named)


def _seen(logs: Tensor, named: Tensor) -> Tensor:
    """Cross-entropy of `logs` (B, N) with the shares `named`, over the frames whose patches show something of it."""
    total = named.sum(1)
    wanted = named / total.clamp_min(1e-6)[:, None]
    each = -(wanted * logs).sum(1)
    return (each * (total > 0)).sum() / (total > 0).sum().clamp_min(1)
