"""Modality saliency per patch: Eq. 1 (features), Eq. 4 to 6 (attention)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["orthogonal", "ratio"]

Doubles = npt.NDArray[np.float64]


def orthogonal(alpha_3d: Doubles, alpha_2d: Doubles) -> Doubles:
    """Eq. 4: the part of `alpha_3d` orthogonal to `alpha_2d`, both (components, patches); all of it where α_2D = 0."""
    along = (alpha_3d * alpha_2d).sum(0)
    square = (alpha_2d * alpha_2d).sum(0)
    return alpha_3d - ratio(along, square) * alpha_2d


def ratio(part: Doubles, whole: Doubles) -> Doubles:
    """The quotient part / whole elementwise, 0 where whole is 0: 0/0 is 0 in every ratio of the method."""
    return np.divide(part, whole, out=np.zeros(np.broadcast_shapes(np.shape(part), np.shape(whole))), where=whole != 0)
