"""The leaf stages of a control step: every millisecond is attributed to one of them, the rest is shown as `other`."""

from __future__ import annotations

from typing import Literal, get_args

__all__ = ["STAGES", "Stage"]

Stage = Literal[
    "encode",
    "observe",
    "stage3",
    "stage1",
    "stage2",
    "fuse",
    "compact",
    "prefill",
    "denoise",
    "decode",
]

STAGES: tuple[Stage, ...] = get_args(Stage)
"""encode: image and point tokenizers, prefix rows. observe: attention rows and norms, reduced to scores. stage3,
stage1, stage2, fuse: the decision, in order of execution. compact: gathering the kept rows. prefill: prefix rows
through the backbone (with `reuse = none`, the whole sequence in every pass). denoise: tail rows, noise read-out,
sampler. decode: the sample to an executable action."""
