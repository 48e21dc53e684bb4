"""Point tokens: 1024 x 3 cloud -> two stages of farthest-point sampling and k-nearest grouping -> 256 tokens.

Grouping (which points) is separate from encoding (what they say): it depends on the cloud and the start indices alone,
needs no gradient, and a trainer computes it once per frame. Encoding addresses points by index only, so a batch is the
samples' points concatenated and their indices shifted by the offsets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from tracekit.model.layers import BatchNorm, Linear, Pointwise

__all__ = ["PointProjector", "PointStage", "PointTower", "farthest_points", "group_points", "nearest_points"]

ALPHA = 1000.0
BETA = 100.0


@dataclass(frozen=True, slots=True)
class PointStage:
    """Grouping of one stage: indices of its points. `centres`: (M,) int64; `neighbours`: (M, k) int64, unordered."""

    centres: Tensor
    neighbours: Tensor


def _farthest(points: npt.NDArray[np.float32], count: int, start: int) -> npt.NDArray[np.int64]:
    """Plain loop, compiled below. Without fastmath LLVM neither reorders nor contracts: float32 results are exact."""
    total = points.shape[0]
    nearest = np.full(total, np.float32(np.inf), dtype=np.float32)
    chosen = np.empty(count, dtype=np.int64)
    current = start
    for i in range(count):
        chosen[i] = current
        x, y, z = points[current, 0], points[current, 1], points[current, 2]
        best = np.float32(-1)
        following = 0
        for j in range(total):
            dx, dy, dz = points[j, 0] - x, points[j, 1] - y, points[j, 2] - z
            distance = dx * dx + dy * dy + dz * dz
            nearest[j] = min(nearest[j], distance)
            if nearest[j] > best:
                best = nearest[j]
                following = j
        current = following
    return chosen


_farthest_compiled: Any = numba.njit(cache=True, nogil=True)(_farthest)


def farthest_points(points: Tensor, count: int, start: int) -> Tensor:
    """(count,) int64 indices of a farthest-point sampling of `points` ((N, 3) float32), beginning at `start`.

    The next point is the arg-max of the smallest squared distance (float32) to those chosen so far; ties go to the
    lowest index.
    """
    rows = np.ascontiguousarray(points.detach().cpu().numpy(), np.float32)
    return torch.from_numpy(_farthest_compiled(rows, count, start)).to(points.device)


def nearest_points(points: Tensor, centres: Tensor, k: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(M, k) int64 indices of the k `points` ((N, 3)) nearest to each of `centres` ((M, 3)), as a set.

    Squared distances are summed as -2ab + a² + b² (a a centre, b a point), whose rounding decides near-ties as it does
    in the release: another order of the three gives another set for one centre in some thousands. `dtype`: what they
    are rounded to after each term. Under the release's autocast that is bfloat16, whose steps are wider than the gaps
    between neighbours: a tenth of what its point tokens say is then the choice among ties, which devices make
    differently.
    """
    distances = -2 * (centres.to(dtype) @ points.T.to(dtype))
    distances += centres.square().sum(-1)[:, None]
    distances += points.square().sum(-1)
    return distances.topk(k, dim=-1, largest=False, sorted=False).indices


def group_points(
    points: Tensor, starts: tuple[int, ...], k: int, dtype: torch.dtype = torch.float32
) -> tuple[PointStage, ...]:
    """Grouping of every stage of `points` ((N, 3) float32); each halves the points, beginning at its start index.

    `dtype`: of the distances, see `nearest_points`.
    """
    stages = []
    current = points
    for start in starts:
        centres = farthest_points(current, len(current) // 2, start)
        following = current[centres]
        stages.append(PointStage(centres, nearest_points(current, following, k, dtype)))
        current = following
    return tuple(stages)


def _offset_code(offsets: Tensor, width: int) -> Tensor:
    """(M, k, width) positional code of normalised `offsets` (M, k, 3).

    Per axis the sines, then the cosines, of 100·offset / 1000^(j/F) for j < F = width/6.
    """
    frequencies = width // 6
    scale = ALPHA ** (torch.arange(frequencies, dtype=torch.float32, device=offsets.device) / frequencies)
    angles = BETA * offsets[..., None] / scale
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)


class _RawEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(Pointwise(3, width, 1, bias=False), BatchNorm(width), nn.ReLU())


class _Block(nn.Module):
    """x <- ReLU(x + BN(conv(ReLU(BN(conv(x)))))) with half the width inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.net1 = nn.Sequential(Pointwise(width, half, 2, bias=True), BatchNorm(half), nn.ReLU())
        self.net2 = nn.Sequential(Pointwise(half, width, 2, bias=True), BatchNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.net2(self.net1(x)))


class _Aggregation(nn.Module):
    """One stage: describe each centre by its neighbours' features and places, refine, and keep the maximum."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.width = width
        self.linear2 = nn.Sequential(*(_Block(width) for _ in range(blocks)))

    def forward(self, xyz: Tensor, features: Tensor, stage: PointStage) -> Tensor:
        """`xyz` (N, 3), `features` (N, width / 2) -> (M, width)."""
        offsets = xyz[stage.neighbours] - xyz[stage.centres][:, None]
        offsets = offsets / offsets.abs().amax(1, keepdim=True).clamp_min(1e-6)
        centre = features[stage.centres][:, None].expand(-1, stage.neighbours.shape[1], -1)
        described = torch.cat([features[stage.neighbours], centre], -1) + _offset_code(offsets, self.width)
        refined: Tensor = self.linear2(described)
        return refined.amax(1)


class _Encoder(nn.Module):
    def __init__(self, width: int, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.raw_point_embed = _RawEmbedding(width)
        self.LGA_list = nn.ModuleList(_Aggregation(width * 2 ** (i + 1), count) for i, count in enumerate(blocks))


class _PatchEmbed(nn.Module):
    def __init__(self, width: int, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.EncP = _Encoder(width, blocks)


class PointTower(nn.Module):
    """The release's point tokenizer. `width`: after the first projection (96 there); doubled by every stage."""

    def __init__(self, width: int, blocks: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.patch_embed = _PatchEmbed(width, blocks)
        self.proj = Linear(width * 2 ** len(blocks), outputs)

    def forward(self, points: Tensor, stages: tuple[PointStage, ...]) -> tuple[Tensor, Tensor]:
        """`points` (N, 3) -> tokens (M, outputs) and their centres (M, 3) in the frame of the points."""
        encoder = self.patch_embed.EncP
        features = encoder.raw_point_embed.net(points)
        for aggregation, stage in zip(encoder.LGA_list, stages, strict=True):
            features = aggregation(points, features, stage)
            points = points[stage.centres]
        return self.proj(features), points


class PointProjector(nn.Module):
    """Linear, exact GELU, Linear: tower outputs -> hidden size."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.projector = nn.Sequential(Linear(inputs, hidden), nn.GELU(), Linear(hidden, hidden))

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., inputs) -> (..., hidden)."""
        projected: Tensor = self.projector(tokens)
        return projected
