"""How far a tri-stage margin can move when every score moves by a relative tolerance: Σ|∂margin/∂x|·tolerance·|x|.

The smoothing of stage 3 is linear in the indicators, so the bound of a smoothed indicator is the indicators' own bound,
smoothed the same way. Membership of clusters is taken as it is: a margin that could change it is a margin of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from tracekit.pruning.saliency import ratio
from tracekit.pruning.tri_stage import TriStageConfig

__all__ = ["Sensitivity"]

Doubles = npt.NDArray[np.float64]
M_3D_S1, M_2D_S2, M_3D_S2, CLUSTER_SCORE = 1, 2, 3, 4


class Sensitivity:
    """Follows one episode step by step. `relative`: the tolerance."""

    def __init__(self, config: TriStageConfig, patches: int, relative: float, *, has_points: bool) -> None:
        self._config, self._relative, self._has_points = config, relative, has_points
        self._updates = np.zeros(patches, np.int64)
        self._smoothed = np.zeros((5, patches))
        self._window: list[Doubles] = []
        self._points = np.zeros(patches, np.bool_)
        self._raw = np.zeros((5, patches))

    def see(self, seen: Mapping[str, npt.NDArray[np.number]], observed: npt.NDArray[np.bool_]) -> None:
        """Take the scores (N,) of one step; patches outside `observed` hold theirs."""
        raw = self._bounds(seen, whole=bool(observed.all()))
        self._raw = np.where(observed, raw, self._raw)
        self._points = np.where(observed, seen["points"] > 0, self._points)
        self._updates += observed
        n, config = np.maximum(self._updates, 1), self._config
        if "s3" not in config.stages:
            new = raw
        elif config.window == "window_mean":
            self._window = [*self._window, self._raw][-config.k :]
            new = np.mean(self._window, axis=0)
        else:
            past = np.where(n < config.k, (n - 1) / n, config.beta)
            new = np.where(n == 1, raw, past * self._smoothed + (1 - past) * raw)
        self._smoothed = np.where(observed, new, self._smoothed)

    def _bounds(self, seen: Mapping[str, npt.NDArray[np.number]], *, whole: bool) -> Doubles:
        f_2d, f_3d, a_2d, a_3d, ortho = (
            seen[name].astype(np.float64) for name in ("norm_2d", "norm_3d", "attention_2d", "attention_3d", "ortho_3d")
        )
        features, attention = ratio(f_2d, f_2d + f_3d), ratio(a_2d, a_2d + a_3d)
        m_3d = ratio(ortho, a_2d + a_3d)
        score = a_2d if self._config.clustering == "separate" else a_2d + a_3d
        rows = [
            2 * features * (1 - features),
            2 * features * (1 - features),
            2 * attention * (1 - attention) if self._has_points else a_2d,
            # ‖ortho‖₁ is a difference of vectors as long as α_3D, and moves as α_3D does
            np.maximum(m_3d, ratio(a_3d, a_2d + a_3d)) + m_3d,
            score if whole else 3 * score,  # rescaled by two sums
        ]
        return self._relative * np.stack(rows)

    def of(self, margin: str, cluster: npt.NDArray[np.int8] | None) -> Doubles:
        """(N,) bound of the margin called `margin`, given this run's clusters."""
        config = self._config
        if margin in {"tau_2d", "tau_3d"}:
            return np.asarray(self._smoothed[M_3D_S1], np.float64)
        if margin == "cluster":
            raw = config.cluster_input == "raw"
            return self._cluster(self._raw[CLUSTER_SCORE] if raw else self._smoothed[CLUSTER_SCORE], cluster)
        if margin in {"mu_2d", "mu_3d"}:
            own = self._smoothed[M_2D_S2 if margin == "mu_2d" else M_3D_S2]
            counted = np.ones(own.size, np.bool_)
            if config.baseline != "all_patches" and self._has_points:
                counted = self._points
            return np.asarray(own + (own[counted].mean() if counted.any() else 0.0), np.float64)
        if margin in {"object_2d", "object_3d"}:
            own = self._smoothed[M_2D_S2 if margin == "object_2d" else M_3D_S2]
            members = own[cluster == 2] if cluster is not None and config.object_rule == "quantiles" else own[:0]
            return np.asarray(own + (members.max() if members.size else 0.0), np.float64)
        return np.zeros(self._updates.size)  # a draw depends on no score

    def _cluster(self, own: Doubles, cluster: npt.NDArray[np.int8] | None) -> Doubles:
        """A cut lies half-way between two centroids, which are means: that of the patch's set and a neighbour's."""
        if cluster is None:
            return own
        means = [own[cluster == name].mean() if (cluster == name).any() else 0.0 for name in range(3)]
        around = [max(means[max(name - 1, 0)], means[min(name + 1, 2)]) for name in range(3)]
        cut = np.array([0.5 * (means[name] + around[name]) for name in range(3)])
        return np.asarray(own + cut[np.clip(cluster, 0, 2)], np.float64)
