"""Counter-based random draws by Philox4x32-10 (Salmon et al., SC 2011): a function of key and counter alone.

Key words are the low and high half of a seed; counter words are (low 32 bits of the episode uid, control step, purpose,
modality·65536 + index). No draw depends on how many were made before it, so order, batching and process cannot change
one. Purposes 3 and 4 belong to the run, not to a pruner: their key is 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tracekit.pruning.base import DecisionKey

__all__ = ["Modality", "Purpose", "action_noise", "fps_starts", "philox4x32", "philox_rounds", "uniforms"]


class Purpose(IntEnum):
    """What a draw is for: the third counter word."""

    BACKGROUND = 1
    TOKENS = 2
    ACTION_NOISE = 3
    FPS_START = 4
    UNPROJECTED = 5


class Modality(IntEnum):
    """What an index counts: the upper half of the fourth counter word."""

    PATCH = 0
    IMAGE = 1
    POINT = 2


_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox_rounds(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> tuple[Any, Any, Any, Any]:
    """The ten rounds on 32-bit words held in uint64: arrays here, scalars where the pruning core compiles it."""
    for _ in range(10):
        p0 = _M0 * c0
        p1 = _M1 * c2
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW, (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
        k0 = (k0 + _W0) & _LOW
        k1 = (k1 + _W1) & _LOW
    return c0, c1, c2, c3


def philox4x32(counter: npt.NDArray[np.uint32], key: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Philox4x32-10 of `counter` (n, 4) uint32 under `key` (2,) uint32: (n, 4) uint32."""
    words = np.asarray(counter, np.uint64).reshape(-1, 4).T
    k0, k1 = np.asarray(key, np.uint64)
    return np.stack(philox_rounds(words[0], words[1], words[2], words[3], k0, k1), axis=1).astype(np.uint32)


def uniforms(
    key: DecisionKey, purpose: Purpose, modality: Modality, indices: npt.NDArray[np.integer[Any]]
) -> npt.NDArray[np.float64]:
    """(n,) uniforms in [0, 1) for `indices` (n,) below 65536: the first word's upper 24 bits / 2²⁴."""
    words = _words(key.seed, key.episode_uid, key.step, purpose, modality, np.asarray(indices))
    return (words[:, 0] >> np.uint32(8)).astype(np.float64) * 2.0**-24


def action_noise(episode_uid: int, step: int, shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """Standard normal noise of `shape`, float32, by Box-Muller: √(-2 ln u₀)·cos(2π u₁), uᵢ = (word i + ½)/2³².

    Logarithm and cosine come from the machine's libm and may differ by an ulp between machines: the noise is recorded,
    and a replay reads it from the trace.
    """
    words = _words(0, episode_uid, step, Purpose.ACTION_NOISE, Modality.PATCH, np.arange(math.prod(shape)))
    u0, u1 = ((words[:, i].astype(np.float64) + 0.5) * 2.0**-32 for i in (0, 1))
    normal = np.sqrt(-2.0 * np.log(u0)) * np.cos(2.0 * np.pi * u1)
    return normal.reshape(tuple(shape)).astype(np.float32)


def fps_starts(episode_uid: int, step: int, passes: int, sizes: Sequence[int]) -> npt.NDArray[np.int64]:
    """(passes, stages) int64 start indices of farthest-point sampling: ⌊word 0 · n / 2³²⌋ with n = sizes[stage].

    The draw's index is 2·pass + stage: at most two stages, as in the MLA point tokenizer; raises ValueError for more.
    """
    stages = len(sizes)
    if stages > 2:
        raise ValueError(f"{stages} farthest-point-sampling stages, but the key of their draws has room for 2")
    index = 2 * np.arange(passes)[:, None] + np.arange(stages)
    words = _words(0, episode_uid, step, Purpose.FPS_START, Modality.PATCH, index.ravel())[:, 0]
    drawn = words.astype(np.uint64).reshape(index.shape) * np.asarray(sizes, np.uint64)
    return (drawn >> _HALF).astype(np.int64)


def _words(
    seed: int, episode_uid: int, step: int, purpose: Purpose, modality: Modality, indices: npt.NDArray[np.integer[Any]]
) -> npt.NDArray[np.uint32]:
    if len(indices) and not 0 <= indices.min() <= indices.max() < 1 << 16:
        raise ValueError(f"a draw's index runs from 0 to 65535, not from {indices.min()} to {indices.max()}")
    counter = np.empty((len(indices), 4), np.uint32)
    counter[:, 0] = episode_uid & 0xFFFFFFFF
    counter[:, 1] = step
    counter[:, 2] = purpose
    counter[:, 3] = (modality << 16) + indices
    return philox4x32(counter, np.array([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF], np.uint32))
