"""Observables out of a forward pass, without disturbing it."""

from tracekit.capture.attention import AttentionTap
from tracekit.capture.calls import apply_rotary
from tracekit.capture.spec import GROUPS, PRESETS, CaptureSpec
from tracekit.capture.structure import attention_modules, final_norm, refuse_compiled, vocabulary_head

__all__ = [
    "GROUPS",
    "PRESETS",
    "AttentionTap",
    "CaptureSpec",
    "apply_rotary",
    "attention_modules",
    "final_norm",
    "refuse_compiled",
    "vocabulary_head",
]
