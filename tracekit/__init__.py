"""The vocabulary and the mechanism of token pruning in multi-visual-modal VLA policies.

Import from the parts (`tracekit.engine`, `tracekit.store`, …). Here are only the exceptions that a caller catches, so
that importing the package costs nothing.
"""

from tracekit.errors import ConfigError, PolicyError, TraceError, TracekitError

__all__ = ["ConfigError", "PolicyError", "TraceError", "TracekitError"]
