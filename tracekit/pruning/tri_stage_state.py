"""What the tri-stage pruner carries from step to step, and its inputs as the compiled stages take them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit import keys
from tracekit.errors import ConfigError, TraceError
from tracekit.pruning.arrays import INDICATORS, Memory, Seen
from tracekit.pruning.base import Shape
from tracekit.pruning.scores import Scores
from tracekit.pruning.tri_stage_config import TriStageConfig

__all__ = ["TriStageState", "check_scores", "empty_state", "memory_of", "point_patches", "seen_of"]

Mask = npt.NDArray[np.bool_]
Patches = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TriStageState:
    """The memory between the steps of an episode, per patch: see `arrays.Memory` for the fields."""

    smoothed: npt.NDArray[np.float64]
    updates: npt.NDArray[np.int64]
    attention: npt.NDArray[np.float64]
    points: npt.NDArray[np.int32]
    window: npt.NDArray[np.float64]

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Plain arrays by name, as a trace recorded while pruning stores them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> TriStageState:
        """Inverse of `to_arrays`."""
        return cls(**{field.name: np.asarray(arrays[field.name]) for field in fields(cls)})


def empty_state(config: TriStageConfig, shape: Shape) -> TriStageState:
    """The state before step 1."""
    window = config.k if config.window == "window_mean" else 0
    return TriStageState(
        smoothed=np.zeros((len(INDICATORS), shape.n_2d)),
        updates=np.zeros(shape.n_2d, np.int64),
        attention=np.zeros((2, shape.n_2d)),
        points=np.zeros(shape.n_2d, np.int32),
        window=np.zeros((window, len(INDICATORS), shape.n_2d)),
    )


def memory_of(state: TriStageState) -> Memory:
    """A copy that may be written to."""
    return Memory(*(getattr(state, field.name).copy() for field in fields(state)))


def seen_of(scores: Scores) -> Seen:
    """Copies: strided or read-only arrays would make the compiler specialise the stages anew in the middle of a run."""
    return Seen(*(np.array(getattr(scores, name), order="C") for name in Seen._fields))


def check_scores(scores: Scores, state: TriStageState, observed: Mask | None, shape: Shape) -> Mask:
    """`observed`, or all true; raises TraceError where the arrays do not fit each other."""
    if scores.norm_2d.shape[-1] != shape.n_2d or state.updates.shape != (shape.n_2d,):
        raise TraceError(
            f"scores are of {scores.norm_2d.shape[-1]} patches and the state of {state.updates.size}, the policy has "
            f"{shape.n_2d}; the trace belongs to another policy"
        )
    if observed is None:
        return np.ones(scores.norm_2d.shape, np.bool_)
    first = observed.reshape(-1, observed.shape[-1])[0]
    if observed.shape != scores.norm_2d.shape or not (first | (state.updates > 0)).all():
        raise TraceError(
            f"observed is of shape {observed.shape}: it must be that of the scores, {scores.norm_2d.shape}, and the "
            "first step of an episode must observe every patch"
        )
    return np.array(observed, np.bool_, order="C")


def point_patches(config: TriStageConfig, shape: Shape, patch: Patches | None, steps: tuple[int, ...] = ()) -> Patches:
    """`patch` (*steps, N_3D) for a budget that counts point tokens, and nothing for the others.

    Raises ConfigError where it is needed and not there or not of that shape, and TraceError for a patch that is none.
    """
    if config.budget != "hard_topk" or config.modalities == "2d" or config.reduction.correspondence == "index":
        return np.zeros((*steps, 0), np.int32)
    if not shape.n_3d:
        return np.zeros((*steps, 0), np.int32)
    if patch is None or patch.shape != (*steps, shape.n_3d):
        raise ConfigError(
            "pruner.budget = 'hard_topk' counts point tokens and needs their patches at the step that is decided, "
            f"{keys.POINT_PATCH} of a trace; record with a camera, or use budget = 'soft'"
        )
    if patch.min() < -1 or patch.max() >= shape.n_2d:
        raise TraceError(f"a point lies in patch {patch.max()}, but there are {shape.n_2d} patches")
    return np.array(patch, np.int32, order="C")
