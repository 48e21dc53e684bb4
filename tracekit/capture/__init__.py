"""Observables out of a forward pass, without disturbing it."""

from tracekit.capture.attention import AttentionTap, apply_rotary
from tracekit.capture.spec import GROUPS, CaptureSpec

__all__ = ["GROUPS", "AttentionTap", "CaptureSpec", "apply_rotary"]
