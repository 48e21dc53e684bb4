"""From patches to point tokens: which points of a denoise pass a decision keeps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from tracekit.camera import TOWER, Camera
from tracekit.errors import TraceError
from tracekit.layout import GRID, PATCHES_PER_VIEW
from tracekit.philox import Modality, Purpose, uniforms
from tracekit.pruning.base import Decision, DecisionKey

__all__ = ["nearest_patches", "observed_patches", "point_mask"]


def point_mask(
    decision: Decision, patch: npt.NDArray[np.int32], pass_index: int, key: DecisionKey
) -> npt.NDArray[np.bool_]:
    """(N_3D,) point tokens that `decision` keeps in denoise pass `pass_index`.

    `patch`: (N_3D,) int32 patch of that pass's own centres, -1 for none. A point follows its patch, Mask_3D[patch]; one
    without a patch is kept, dropped, or, by `random`, kept with the share at which those with a patch are (its draw has
    index 256·pass + point, modality 3D; share 1 where no point has a patch). A decision over token indices is the same
    in every pass. Raises TraceError if `patch` does not fit the decision.
    """
    if decision.keep_3d_tokens is not None:
        if patch.shape != decision.keep_3d_tokens.shape:
            raise TraceError(
                f"{patch.size} points in this pass, but the decision is over {decision.keep_3d_tokens.size}"
            )
        return decision.keep_3d_tokens
    if decision.keep_3d_patches is None:
        return np.ones(0, np.bool_)
    if patch.size and not -1 <= patch.min() <= patch.max() < decision.keep_3d_patches.size:
        raise TraceError(f"a point lies in patch {patch.max()}, but there are {decision.keep_3d_patches.size} patches")
    projected = patch >= 0
    keep = projected & decision.keep_3d_patches[np.where(projected, patch, 0)]
    lost = np.flatnonzero(~projected)
    if decision.unprojected == "keep":
        keep[lost] = True
    elif decision.unprojected == "random":
        drawn = uniforms(key, Purpose.UNPROJECTED, Modality.POINT, 256 * pass_index + lost) * 2.0**24
        among, kept = int(projected.sum()), int(keep.sum())
        keep[lost] = drawn * among < kept * 2.0**24 if among else True
    return keep


def observed_patches(
    keep_2d: npt.NDArray[np.bool_], keep_3d: npt.NDArray[np.bool_], patch: npt.NDArray[np.int32]
) -> npt.NDArray[np.bool_]:
    """(N_2D,) patches that a pruned pass observed: their image token and all their projected points were kept.

    `keep_2d` (N_2D,), `keep_3d` (N_3D,): tokens fed in that pass; `patch` (N_3D,): its points' patches.
    """
    observed = keep_2d.copy()
    observed[patch[(patch >= 0) & ~keep_3d]] = False
    return observed


def nearest_patches(
    centres: npt.NDArray[np.float32], patch: npt.NDArray[np.int32], cameras: Mapping[int, Camera]
) -> npt.NDArray[np.int32]:
    """(N_3D,) `patch` with every -1 replaced by the patch whose centre ray passes nearest (correspondence `nearest`).

    `centres`: (N_3D, 3) world metres; `cameras`: index of a view -> its camera. A ray starts at the camera and runs
    forward through the middle of the patch; of equally near ones the lowest patch. Raises TraceError without a camera.
    """
    lost = np.flatnonzero(patch < 0)
    if not lost.size:
        return patch
    if not cameras:
        raise TraceError(
            "no view has a camera, so no patch is nearest; use pruner.reduction.correspondence = 'projection'"
        )
    best = np.full(lost.size, np.inf)
    out = patch.copy()
    for view, camera in sorted(cameras.items()):
        rays = _centre_rays(camera)
        offset = centres[lost].astype(np.float64) - np.asarray(camera.translation, np.float64)
        along = np.maximum(offset @ rays.T, 0.0)
        apart = ((offset[:, None, :] - along[:, :, None] * rays) ** 2).sum(2)
        nearest = apart.argmin(1)
        distance = apart[np.arange(lost.size), nearest]
        closer = distance < best
        out[lost[closer]] = PATCHES_PER_VIEW * view + nearest[closer]
        best = np.minimum(best, distance)
    return out


def _centre_rays(camera: Camera) -> npt.NDArray[np.float64]:
    """(256, 3) unit directions in the world through the middle of each patch."""
    middle = (np.arange(GRID) + 0.5) * (TOWER // GRID)
    v, u = np.meshgrid(middle * camera.height / TOWER, middle * camera.width / TOWER, indexing="ij")
    x, y = (u.ravel() - camera.cx) / camera.fx, (v.ravel() - camera.cy) / camera.fy
    rays = np.stack([x, y, np.ones_like(x)], axis=1) @ np.asarray(camera.rotation, np.float64).T
    return np.asarray(rays / np.sqrt((rays * rays).sum(1, keepdims=True)), np.float64)
