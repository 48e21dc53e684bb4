"""Deciding in the middle of pass 0: what the first blocks showed, and the mask that the others run under."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from torch import nn

from tracekit.capture import AttentionTap, CaptureSpec, attention_modules
from tracekit.capture.structure import final_norm
from tracekit.engine.deciding import Decider
from tracekit.engine.forward import Inside
from tracekit.layout import TokenLayout
from tracekit.pruning import Decision, Observables

__all__ = ["InsideDecision"]


class InsideDecision:
    """The decision behind block `layer` of pass 0, taken once that block has run. `asked` goes to the forward pass.

    `observe`: what a tap of the first blocks shows; arrays over layers reach to `layer`. `fuse`: decision -> tokens
    that stay.
    """

    def __init__(
        self,
        decider: Decider,
        backbone: nn.Module,
        layout: TokenLayout,
        layer: int,
        spec: CaptureSpec,
        observe: Callable[[AttentionTap], Observables],
        fuse: Callable[[Decision], npt.NDArray[np.bool_]],
    ) -> None:
        self._decider, self._layer, self._observe, self._fuse = decider, layer, observe, fuse
        tap = AttentionTap(_FirstBlocks(backbone, layer + 1), layout, spec.groups, spec)
        self.asked = Inside(tap, self._decide)
        self._taken: tuple[Decision, npt.NDArray[np.bool_]] | None = None

    @property
    def taken(self) -> tuple[Decision, npt.NDArray[np.bool_]]:
        """The decision, and the (N_visual,) tokens that stay behind the block."""
        if self._taken is None:
            self._decide()
        return self._taken  # type: ignore[return-value]  # set by _decide

    def _decide(self) -> npt.NDArray[np.bool_]:
        decision = self._decider.inside(self._layer, self._observe(self.asked.tap))
        self._taken = decision, self._fuse(decision)
        return self._taken[1]


class _FirstBlocks(nn.Module):
    """The attention of the first `count` blocks, as far as a tap looks at a backbone."""

    def __init__(self, backbone: nn.Module, count: int) -> None:
        super().__init__()
        self.attention = nn.ModuleList(attention_modules(backbone)[:count])
        self.norm = final_norm(backbone)
