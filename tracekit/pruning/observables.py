"""What a pruner may look at: a few numbers per visual token, taken out of a forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Observables"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Observables:
    """Observables of one control step. N = N_2D + N_3D visual tokens: all image tokens, then all point tokens.

    Of denoise pass 0: `norms`: feature (`prenorm`, `postnorm`, `logits`) -> (N,) float32 L1 norm of the token's
    final-layer feature. `attention`: (layers, heads, groups, N) float32, attention received from each query group, the
    mean over the group's rows; `groups` names that axis. `patch`: (N_3D,) int32 patch of every point token, -1 where it
    projects into none; None for a policy without points. `nearest_patch`: the same, with unprojected points given to
    the patch whose centre ray passes nearest.

    Of the later passes: `attention_action`: (passes - 1, layers, N) float32 head means of the action rows;
    `patch_later`: (passes - 1, N_3D) int32 patch of their own point tokens.

    For single baselines, of pass 0 unless said otherwise: `last_row` (layers, N) head mean of the last text row;
    `mean_all_rows` (layers, N) head mean over all prefix rows; `qk_text_layer0` (N,) pre-softmax text scores;
    `embeddings` (N, D) rows fed to the backbone; `centres` (N_3D, 3) metres; `images` (views, H, W, 3) uint8;
    `displacement_m`: length of the previous executed translation in metres, None before the first.

    `kept`: (N,) bool, the visual tokens that were fed at all; the others' numbers are never read. None: all.
    """

    norms: Mapping[str, Floats]
    attention: Floats
    groups: tuple[str, ...]
    patch: npt.NDArray[np.int32] | None
    nearest_patch: npt.NDArray[np.int32] | None = None
    attention_action: Floats | None = None
    patch_later: npt.NDArray[np.int32] | None = None
    last_row: Floats | None = None
    mean_all_rows: Floats | None = None
    qk_text_layer0: Floats | None = None
    embeddings: Floats | None = None
    centres: Floats | None = None
    images: npt.NDArray[np.uint8] | None = None
    displacement_m: float | None = None
    kept: npt.NDArray[np.bool_] | None = None
