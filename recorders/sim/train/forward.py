"""The forward pass of training: one prefix per frame, several noisy actions behind it that do not see each other.

What a prefix row computes does not depend on the tail, so all noise draws of a frame share it. Frames are run together
with those whose instruction has as many tokens; positions, and so results, are those of the running policy.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from recorders.sim.train.batches import Batch
from tracekit.errors import PolicyError
from tracekit.layout import PATCHES_PER_VIEW
from tracekit.model import MLA
from tracekit.model.backbone import DecoderLayer, rotate
from tracekit.model.diffusion import TRAINING_STEPS, add_noise

__all__ = ["Hidden", "Noise", "draw_noise", "forward_batch"]

_LOOKING = 3
"""Heads of the middle layer whose attention is taught."""


@dataclass(frozen=True, slots=True)
class Noise:
    """K draws per frame: `noise` (B, K, T, A) standard normal, `timesteps` (B, K) int64."""

    noise: Tensor
    timesteps: Tensor


@dataclass(frozen=True, slots=True)
class Hidden:
    """What the losses read, B frames with N image and M point tokens kept.

    `predicted`: (B, K, T, A) noise. `middle_image`, `middle_points`, `middle_state`: (B, N, D), (B, M, D) and (B, D) in
    the middle of the network.
    `late_image`, `late_state`: as the last layer is given them, `final_image`, `final_points`, `final_state` as
    it leaves them. `looked`: (B, 2, N) logarithm of the attention that the state row gives to image tokens in
    the first two heads of the middle layer, `looked_points`: (B, M) of what it gives to point tokens in the third.
    `image`, `points`: (N,) and (M,) indices of the kept tokens.
    """

    image: Tensor
    points: Tensor
    predicted: Tensor
    middle_image: Tensor
    middle_points: Tensor
    middle_state: Tensor
    late_image: Tensor
    late_state: Tensor
    final_image: Tensor
    final_points: Tensor
    final_state: Tensor
    looked: Tensor
    looked_points: Tensor


def draw_noise(shape: tuple[int, int, int, int], generator: torch.Generator) -> Noise:
    """`shape` = (B, K, T, A). The K timesteps of a frame are spread out: draw i is uniform in the i-th of K parts."""
    frames, draws = shape[:2]
    uniform = torch.rand(frames, draws, generator=generator)
    timesteps = ((torch.arange(draws) + uniform) * (TRAINING_STEPS / draws)).long().clamp_max(TRAINING_STEPS - 1)
    return Noise(torch.randn(shape, generator=generator), timesteps)


def forward_batch(policy: MLA, batch: Batch, noise: Noise, image: Tensor, points: Tensor) -> Hidden:
    """Run `batch` with the image and point tokens `image` (N,) and `points` (M,) (int64, ascending) kept.

    With neither kept the encoders do not run: the policy is blind. Raises PolicyError for more than one view.
    """
    if len(policy.config.views) != 1:
        raise PolicyError(f"policy {policy.config.name!r} has {len(policy.config.views)} views; training knows one")
    image_tokens, point_tokens = _encoded(policy, batch)
    samples = add_noise(
        batch.labels.action.repeat_interleave(noise.noise.shape[1], 0),
        noise.noise.flatten(0, 1),
        noise.timesteps.flatten(),
    )
    tails = policy.tail_rows(samples, noise.timesteps.flatten()).view(
        *noise.timesteps.shape, -1, policy.config.hidden_size
    )
    groups: dict[int, list[int]] = defaultdict(list)
    for i, ids in enumerate(batch.text_ids):
        groups[len(ids)].append(i)
    order = [i for members in groups.values() for i in members]
    parts = []
    for members in groups.values():
        rows = torch.stack(
            [
                policy.prefix_rows(point_tokens[i], image_tokens[i : i + 1], batch.text_ids[i], batch.proprio[i])
                for i in members
            ]
        )
        parts.append(_run(policy, rows, tails[members], len(batch.text_ids[members[0]]) - 1, image, points))
    back = torch.tensor(order).argsort()
    fields = (torch.cat(column)[back] for column in zip(*parts, strict=True))
    return Hidden(image, points, *fields)


def _encoded(policy: MLA, batch: Batch) -> tuple[Tensor, Tensor]:
    """(B, 256, D) image and (B, M, D) point tokens; zeros that are dropped again for a blind batch."""
    width = policy.config.hidden_size
    if batch.pixels is None or batch.points is None or batch.stages is None:
        return (
            torch.zeros(len(batch), PATCHES_PER_VIEW, width),
            torch.zeros(len(batch), policy.config.point_tokens, width),
        )
    described, _ = policy.vision_tower_3d(batch.points, batch.stages)
    return policy.image_tokens(batch.pixels), policy.projector_3d(described).view(len(batch), -1, width)


def _run(
    policy: MLA, prefix: Tensor, tails: Tensor, text_tokens: int, image: Tensor, points: Tensor
) -> tuple[Tensor, ...]:
    """The backbone over `prefix` (G, P, D) and `tails` (G, K, 1 + T + 1, D) of one length; fields of `Hidden`."""
    layout, backbone = policy.layout(text_tokens), policy.backbone
    kept = torch.ones(layout.prefix_length, dtype=torch.bool)
    kept[torch.from_numpy(layout.visual_positions)] = False
    kept[torch.from_numpy(layout.image_positions)[image]] = True
    kept[torch.from_numpy(layout.point_positions)[points]] = True
    positions = kept.nonzero().flatten()
    length, (draws, tail) = len(positions), tails.shape[1:3]
    place = kept.cumsum(0) - 1
    at_image = place[torch.from_numpy(layout.image_positions)[image]]
    at_points = place[torch.from_numpy(layout.point_positions)[points]]
    rows = torch.cat([prefix[:, positions], tails.flatten(1, 2)], 1)
    rotary = backbone.rope(torch.cat([positions, torch.arange(layout.prefix_length, layout.length).repeat(draws)]))
    mask = _shared_prefix_mask(length, draws, tail)
    middle = late = rows
    for i, layer in enumerate(backbone.layers):
        late = rows
        if i == policy.config.layers // 2:
            middle = rows
            looked = _looked(layer, rows[:, :length], rotary)
        rows = layer(rows, rotary, None, mask)
    final = backbone.norm(rows)
    action = slice(1, 1 + policy.config.action_window)
    predicted = policy.read_noise(final[:, length:].view(len(prefix), draws, tail, -1)[:, :, action])
    state = length - 1
    return (
        predicted,
        middle[:, at_image],
        middle[:, at_points],
        middle[:, state],
        late[:, at_image],
        late[:, state],
        final[:, at_image],
        final[:, at_points],
        final[:, state],
        looked[:, :2, at_image],
        looked[:, 2, at_points],
    )


def _looked(layer: nn.Module, rows: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """(G, 3, n) log-attention of the last of `rows` (G, n, D) to all of them in the first three heads of `layer`."""
    attention = cast("DecoderLayer", layer).self_attn
    normed, width = cast("DecoderLayer", layer).input_layernorm(rows), attention.head_dim
    cos, sin = (table[: rows.shape[1]] for table in rotary)

    def heads(weight: Tensor, seen: Tensor, chosen: list[int]) -> Tensor:
        rows = [row for head in chosen for row in range(head * width, (head + 1) * width)]
        return functional.linear(seen, weight[rows]).view(*seen.shape[:2], len(chosen), width).transpose(1, 2)

    shared = [head * attention.kv_heads // attention.heads for head in range(_LOOKING)]
    asking = rotate(heads(attention.q_proj.weight, normed[:, -1:], list(range(_LOOKING))), cos[-1:], sin[-1:])
    keys = rotate(heads(attention.k_proj.weight, normed, shared), cos, sin)
    logits: Tensor = (keys @ asking.transpose(2, 3)).squeeze(-1) * width**-0.5
    return logits.log_softmax(-1)


def _shared_prefix_mask(prefix: int, draws: int, tail: int) -> Tensor:
    """(n, n) bool, n = prefix + draws·tail: causal, but no tail sees another one."""
    mask = torch.ones(prefix + draws * tail, prefix + draws * tail, dtype=torch.bool).tril()
    own = torch.eye(draws).repeat_interleave(tail, 0).repeat_interleave(tail, 1).bool()
    mask[prefix:, prefix:] &= own
    return mask
