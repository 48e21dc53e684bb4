"""What a step that was pruned while it was recorded leaves beside the usual arrays: masks, reasons, and memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit import keys
from tracekit.config import Configuration
from tracekit.engine import StepResult, decision_shape, observed_when, pruner_state
from tracekit.errors import TraceError
from tracekit.pruning import Shape, observed_patches
from tracekit.pruning.arrays import MARGINS
from tracekit.records import Field, field
from tracekit.store import ArraySpec, Episode

__all__ = ["pruned_fields", "recorded_kept"]

_REASONS = (("s1", "uint8"), ("s2", "uint8"), ("cluster", "int8"), ("conflict", "bool"))


def pruned_fields(result: StepResult, config: Configuration) -> dict[str, Field]:
    """Key -> array: kept tokens of every pass, observed patches, the decision and why, the pruner's state after it."""
    shape, decision = decision_shape(result.layout), result.decision
    masks = {
        keys.decision("mask_2d"): _optional(decision.keep_2d, "bool", "patch", shape.n_2d),
        keys.decision("mask_3d"): _optional(decision.keep_3d_patches, "bool", "patch", shape.n_2d),
        keys.decision("mask_points"): _optional(decision.keep_3d_tokens, "bool", "token", shape.n_3d),
    }
    reasons = {
        keys.decision(name): _optional(getattr(decision, name), dtype, "patch", shape.n_2d) for name, dtype in _REASONS
    }
    margins = {
        keys.margin(name): _optional(decision.margins.get(name), "float64", "patch", shape.n_2d) for name in MARGINS
    }
    return {
        keys.KEPT: field(result.kept, "bool", "pass token"),
        keys.OBSERVED: field(_observed(result, shape), "bool", "patch"),
        keys.PRUNED_FROM: field(result.pruned_from, "int32"),
        **{key: item for key, item in (masks | reasons | margins).items() if item.spec.shape != (0,)},
        **_state_fields(pruner_state(result.memory), config),
    }


def recorded_kept(episode: Episode, step: int) -> npt.NDArray[np.bool_]:
    """(passes, N_visual) bool: the visual tokens that were there in every pass of `step` (0-based).

    Raises TraceError if the episode was not recorded while pruning.
    """
    if keys.KEPT not in episode:
        raise TraceError(f"episode {episode.info.id!r} has no {keys.KEPT!r}: it was not recorded while pruning")
    return episode.read(keys.KEPT, step)


def _observed(result: StepResult, shape: Shape) -> npt.NDArray[np.bool_]:
    """(N_2D,) patches whose tokens were all kept in pass 0: as the pruner was told, where it is told that."""
    told = observed_when(result.memory)
    if told is not None:
        return told
    patch = next((record.patch for record in result.encoded if record.patch is not None), np.zeros(0, np.int32))
    first = result.kept[0]
    return observed_patches(first[: shape.n_2d], first[shape.n_2d :], patch)


def _optional(values: npt.NDArray[Any] | None, dtype: str, axis: str, size: int) -> Field:
    spec = ArraySpec(dtype=dtype, shape=(size,), axes=(axis,), optional=True)
    return Field(spec, None if values is None else np.asarray(values, dtype))


def _state_fields(state: Any, config: Configuration) -> dict[str, Field]:
    """The arrays of a pruner's state; those that grow are padded to the longest, and `length` says how far they go."""
    if not hasattr(state, "to_arrays"):
        return {}
    arrays: dict[str, npt.NDArray[Any]] = state.to_arrays()
    longest = None if config.method.longest_state is None else config.method.longest_state(config.pruner)
    fields = {}
    for name, array in arrays.items():
        held = array
        if longest is not None:
            held = np.zeros((longest, *array.shape[1:]), array.dtype)
            held[: len(array)] = array
        axes = " ".join(f"axis_{index}" for index in range(held.ndim))
        fields[keys.pruner_state(name)] = field(held, str(held.dtype), axes)
    if longest is not None and arrays:
        length = len(next(iter(arrays.values())))
        fields[keys.pruner_state("length")] = field(length, "int32")
    return fields
