"""What decisions on one recorded episode are made from, read once and used for every configuration."""

from __future__ import annotations

from dataclasses import fields
from functools import cached_property

import numpy as np
import numpy.typing as npt

from replay.source import RecordedEpisode
from replay.sweep.cells import Target
from tracekit import keys
from tracekit.engine import decision_shape
from tracekit.layout import TokenLayout
from tracekit.pruning import Reduction, Scores, Shape

__all__ = ["EpisodeInputs"]


class EpisodeInputs:
    """The stored scores and token patches of the episode that `target` names."""

    def __init__(self, target: Target, episode: RecordedEpisode) -> None:
        self.target, self.episode = target, episode
        self._scores: dict[Reduction, Scores] = {}
        self._by_nearest: EpisodeInputs | None = None

    @cached_property
    def layout(self) -> TokenLayout:
        """The unpruned sequence."""
        return TokenLayout.from_json(self.episode.info.attributes["layout"])

    @cached_property
    def shape(self) -> Shape:
        """Sizes that are decided for."""
        return decision_shape(self.layout)

    @cached_property
    def numbers(self) -> npt.NDArray[np.int64]:
        """(steps,) 1-based control step of every row."""
        return np.array([self.episode.number(index) for index in range(len(self.episode))], np.int64)

    @cached_property
    def passes(self) -> int:
        """Denoise passes per step."""
        return int(self.episode.stored.spec(keys.FPS_STARTS).shape[0])

    @cached_property
    def patches(self) -> npt.NDArray[np.int32] | None:
        """(steps, passes, N_3D) patch of every point token; None for a policy without points."""
        return self.episode.stored.read(keys.POINT_PATCH) if self.shape.n_3d else None

    def following(self, reduction: Reduction) -> EpisodeInputs:
        """The same with `patches` as the correspondence of `reduction` gives them."""
        if reduction.correspondence != "nearest" or self.patches is None:
            return self
        if self._by_nearest is None:
            patches = [self.episode.patches(index, reduction) for index in range(len(self.episode))]
            self._by_nearest = EpisodeInputs(self.target, self.episode)
            self._by_nearest.patches = np.stack([one for one in patches if one is not None])
        return self._by_nearest

    @cached_property
    def points(self) -> npt.NDArray[np.float32]:
        """(steps, passes, N_2D) number of point tokens in every patch, as exact floats."""
        steps = len(self.episode)
        if self.patches is None:
            return np.zeros((steps, self.passes, self.shape.n_2d), np.float32)
        flat = self.patches.reshape(-1, self.patches.shape[-1])
        counts = [np.bincount(row[row >= 0], minlength=self.shape.n_2d) for row in flat]
        return np.array(counts, np.float32).reshape(steps, self.passes, self.shape.n_2d)

    @property
    def unprojected(self) -> npt.NDArray[np.int64]:
        """(steps, passes) point tokens without a patch."""
        return np.asarray(self.shape.n_3d - self.points.sum(-1), np.int64)

    def scores(self, reduction: Reduction, count: int) -> Scores:
        """(count, N_2D) stored scores of the first `count` steps; raises TraceError naming the reduction if absent."""
        if reduction not in self._scores:
            steps = [self.episode.scores(index, reduction) for index in range(len(self.episode))]
            self._scores[reduction] = Scores.stack(steps)
        whole = self._scores[reduction]
        return Scores(*(getattr(whole, item.name)[:count] for item in fields(Scores)))
