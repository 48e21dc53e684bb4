"""Batches of labelled frames, drawn in an order that depends on seed and step alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial import KDTree
from torch import Tensor
from torch.nn import functional

from recorders.sim.cloud import CROP_HIGH, CROP_LOW
from recorders.sim.palette import PALETTE
from recorders.sim.train.demonstrations import LANDMARKS, Demonstration, demonstration_path
from tracekit.errors import TraceError
from tracekit.layout import GRID
from tracekit.model import MLA
from tracekit.model.image import MEAN, SIDE, STD
from tracekit.model.points import PointStage, farthest_points

__all__ = ["Batch", "Frames", "Labels", "make_batch"]

_NEXT_POINTS = 4
"""Points of the next cloud whose mean tells where the surface near a point token has gone."""

_ITEM_WIDTH, _LEAST_NEAR = 0.03, 0.1
"""Metres from the item's origin at which a patch counts exp(-1/2), and the least that counts."""


@dataclass(frozen=True, slots=True)
class Labels:
    """What is predicted for B frames. NaN where there is nothing to predict.

    `action`: (B, T, A) normalised. `landmarks`: (B, 3, 3) m. `patch_xyz`: (B, 256, 3) m, in the working space only.
    `named`: (B, 256) share of the named object's pixels in every patch, all zero where it is hidden. `item`: (B, 256)
    in 0 ... 1, how near what the patch shows is to the loose thing that has to be moved; zero without one;
    `item_points`: (B, 256) the same of point tokens' centres. `next_patch`: (B, 256, 12) the next picture, 2 x 2
    colours per patch in 0 ... 1. `next_offset`: (B, 256, 3) m, from a point token's centre to the next cloud nearby.
    `colour`: (B,) int64 place in the sorted palette of the colour that the instruction names.
    """

    action: Tensor
    landmarks: Tensor
    patch_xyz: Tensor
    named: Tensor
    item: Tensor
    item_points: Tensor
    next_patch: Tensor
    next_offset: Tensor
    colour: Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """B frames for the encoders.

    `text_ids`: one (n,) int64 per frame, BOS first, without tail. `proprio`: (B, A) normalised. `pixels`:
    (B, 3, 672, 672). `points`: (1024·B, 3) m, frame after frame; `stages` index into it. The last three are None
    for a policy without eyes.
    """

    text_ids: tuple[Tensor, ...]
    proprio: Tensor
    labels: Labels
    pixels: Tensor | None = None
    points: Tensor | None = None
    stages: tuple[PointStage, ...] | None = None

    def __len__(self) -> int:
        return len(self.text_ids)


class Frames:
    """The labelled frames of the successful demonstrations of `plan`, in memory with their pictures compressed."""

    def __init__(self, folder: Path, plan: Sequence[tuple[str, int]]) -> None:
        episodes = [Demonstration.load(demonstration_path(folder, task, seed)) for task, seed in plan]
        self.episodes = [episode for episode in episodes if episode.success]
        self.failed = len(episodes) - len(self.episodes)
        self._index = [(i, frame) for i, episode in enumerate(self.episodes) for frame in range(len(episode))]
        if not self._index:
            raise TraceError(f"{folder}: no successful demonstration to learn from; record more")

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> tuple[Demonstration, int]:
        """Episode and frame number of frame `index`."""
        episode, frame = self._index[index]
        return self.episodes[episode], frame

    def drawn(self, seed: int, step: int, count: int) -> list[int]:
        """Frames of training step `step`: each epoch is a permutation that `seed` and the epoch determine."""
        wanted = np.arange(step * count, (step + 1) * count)
        chosen: list[int] = []
        for epoch in np.unique(wanted // len(self)):
            order = np.random.Generator(np.random.PCG64([seed, int(epoch)])).permutation(len(self))
            chosen += order[wanted[wanted // len(self) == epoch] % len(self)].tolist()
        return chosen


def make_batch(
    policy: MLA, frames: Frames, indices: Sequence[int], rng: np.random.Generator, *, blind: bool = False
) -> Batch:
    """The frames `indices`; FPS starts are drawn from `rng`. `blind` leaves out pictures, clouds and their labels."""
    chosen = [frames[index] for index in indices]
    config = policy.config
    text_ids = tuple(torch.tensor(policy.tokenizer.encode(episode.instruction)) for episode, _ in chosen)
    proprio = _tensor([config.state.normalise(episode.state[frame]) for episode, frame in chosen])
    action = _tensor([config.action.normalise(_chunk(*where, config.action_window)) for where in chosen])
    landmarks = _tensor([episode.landmarks[frame] for episode, frame in chosen])
    colour = torch.tensor([_named_colour(episode.instruction) for episode, _ in chosen])
    if blind:
        none = torch.zeros(len(chosen), 0, 3)
        return Batch(
            text_ids,
            proprio,
            Labels(action, landmarks, none, none[..., 0], none[..., 0], none[..., 0], none, none, colour),
        )
    clouds = [episode.points[frame] for episode, frame in chosen]
    grouped = [_grouped(cloud, config.fps_sizes, config.point_neighbours, rng) for cloud in clouds]
    centres = [_centres(cloud, stages) for cloud, stages in zip(clouds, grouped, strict=True)]
    following = [episode.points[frame + 1] for episode, frame in chosen]
    pixels = torch.stack([_bytes(episode.image(frame)) for episode, frame in chosen])
    later = torch.stack([_bytes(episode.image(frame + 1)) for episode, frame in chosen])
    places = _tensor([episode.patch_xyz[frame] for episode, frame in chosen])
    item = landmarks[:, LANDMARKS.index("item")]
    labels = Labels(
        action=action,
        landmarks=landmarks,
        patch_xyz=_working_space(places),
        named=_named(torch.tensor(np.stack([episode.patch_pixels[frame, :, 0] for episode, frame in chosen]))),
        item=_near(places, item),
        item_points=_near(_tensor(centres), item),
        next_patch=_patch_colours(later),
        next_offset=_tensor([_offsets(c, cloud) for c, cloud in zip(centres, following, strict=True)]),
        colour=colour,
    )
    return Batch(
        text_ids, proprio, labels, _normalised(pixels), _tensor(clouds).flatten(0, 1), _joined(grouped, config.points)
    )


def _tensor(arrays: Sequence[npt.NDArray[Any]]) -> Tensor:
    return torch.tensor(np.stack(arrays), dtype=torch.float32)


def _chunk(episode: Demonstration, frame: int, window: int) -> npt.NDArray[np.float64]:
    """(T, A) answers of the expert from `frame` on; the last one is repeated at the end of the episode."""
    return episode.action[np.minimum(np.arange(frame, frame + window), len(episode) - 1)]


def _bytes(image: npt.NDArray[np.uint8]) -> Tensor:
    """(3, H, W) uint8."""
    return torch.tensor(image).permute(2, 0, 1)


def _normalised(pictures: Tensor) -> Tensor:
    """What `pixels_of` gives, for a batch (B, 3, H, W) uint8: torch's bicubic on bytes is Pillow's, only faster."""
    large = functional.interpolate(pictures, (SIDE, SIDE), mode="bicubic", antialias=True).contiguous()
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return large.float().div_(255).sub_(mean).div_(std)


def _patch_colours(pictures: Tensor) -> Tensor:
    """(B, 256, 12) of (B, 3, H, W) uint8 pictures: the mean colours, 0 ... 1, of every patch's four quarters."""
    quarters = functional.adaptive_avg_pool2d(pictures.float() / 255, 2 * GRID)
    cells = quarters.view(len(pictures), 3, GRID, 2, GRID, 2)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(len(pictures), GRID * GRID, 12)


def _working_space(places: Tensor) -> Tensor:
    """`places` (B, 256, 3) with NaN outside the crop of the cloud: no point token could tell of those."""
    inside = ((places > torch.tensor(CROP_LOW)) & (places < torch.tensor(CROP_HIGH))).all(-1, keepdim=True)
    return torch.where(inside, places, torch.nan)


def _named_colour(instruction: str) -> int:
    """Place in the sorted palette of the one colour that `instruction` names."""
    words = instruction.split()
    return next(i for i, name in enumerate(sorted(PALETTE)) if name in words)


def _named(pixels: Tensor) -> Tensor:
    counts = pixels.float()
    return counts / counts.sum(1, keepdim=True).clamp_min(1.0)


def _near(places: Tensor, item: Tensor) -> Tensor:
    """(B, 256) weights of `places` (B, 256, 3) by their distance to `item` (B, 3), m; zero far off and for NaN."""
    squared = (places - item[:, None]).square().sum(-1)
    weights = (-squared / (2 * _ITEM_WIDTH**2)).exp()
    return torch.where(weights > _LEAST_NEAR, weights, 0.0)


def _grouped(
    cloud: npt.NDArray[np.float32], sizes: Sequence[int], k: int, rng: np.random.Generator
) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Centres and neighbours of every stage, as `group_points` chooses them but for near-ties; a tree is faster."""
    stages = []
    for size in sizes:
        chosen = farthest_points(torch.from_numpy(cloud), size // 2, int(rng.integers(size))).numpy()
        _, neighbours = KDTree(cloud).query(cloud[chosen], k)
        stages.append((chosen, np.asarray(neighbours, np.int64)))
        cloud = cloud[chosen]
    return stages


def _centres(
    cloud: npt.NDArray[np.float32], stages: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]
) -> npt.NDArray[np.float32]:
    for chosen, _ in stages:
        cloud = cloud[chosen]
    return cloud


def _offsets(centres: npt.NDArray[np.float32], following: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    _, nearest = KDTree(following).query(centres, _NEXT_POINTS)
    return np.asarray(following[nearest].mean(1) - centres, np.float32)


def _joined(
    grouped: Sequence[Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]], points: int
) -> tuple[PointStage, ...]:
    """Stages of all frames as one: indices shifted by the points that come before."""
    joined = []
    for stage in range(len(grouped[0])):
        size = points >> stage
        centres = np.concatenate([frame[stage][0] + i * size for i, frame in enumerate(grouped)])
        neighbours = np.concatenate([frame[stage][1] + i * size for i, frame in enumerate(grouped)])
        joined.append(PointStage(torch.from_numpy(centres), torch.from_numpy(neighbours)))
    return tuple(joined)
