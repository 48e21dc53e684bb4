"""From what the compiled stages wrote to a `Decision`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from tracekit.pruning.arrays import NOTES, Outcome
from tracekit.pruning.base import Decision, Shape
from tracekit.pruning.tri_stage_config import TriStageConfig, counts_tokens, is_pruned

__all__ = ["decision_of", "everything"]

Named = Mapping[str, npt.NDArray[np.float64]]
NONE: Named = MappingProxyType({})


def everything(shape: Shape) -> Decision:
    """Nothing has been seen, so nothing is pruned and no threshold was tested."""
    every_patch = np.ones(shape.n_2d, np.bool_)
    return Decision(every_patch, every_patch if shape.n_3d else None, pruned=False)


def decision_of(
    config: TriStageConfig, shape: Shape, step: int, out: Outcome, margins: Named = NONE, indicators: Named = NONE
) -> Decision:
    """The decision of control step `step` that `out` holds, with what is given of its margins and indicators."""
    pruned = is_pruned(config, step)
    of_tokens = bool(shape.n_3d) and pruned and counts_tokens(config)
    return Decision(
        keep_2d=out.keep_2d,
        keep_3d_patches=out.keep_3d if shape.n_3d and not of_tokens else None,
        keep_3d_tokens=out.tokens if of_tokens else None,
        unprojected=config.unprojected_points if pruned and config.modalities != "2d" else "keep",
        pruned=pruned,
        s1=out.s1,
        s2=out.s2,
        cluster=out.cluster if "s2" in config.stages else None,
        conflict=out.conflict,
        margins=margins,
        indicators=indicators,
        notes=dict(zip(NOTES, out.notes.tolist(), strict=True)) if config.budget == "soft" else {},
    )
