"""The one exception family of the toolkit.

Every error a user can cause is a `TracekitError` whose message is one line: what is wrong, where, and what to do.
The command line prints that line and exits with status 2; a library caller catches one class.
"""

from __future__ import annotations

__all__ = ["ConfigError", "PolicyError", "TraceError", "TracekitError"]


class TracekitError(Exception):
    """Unusable input. The message names the thing, the place, and the remedy, in one line."""


class ConfigError(TracekitError):
    """A configuration that cannot be used: an unknown key, a value out of range, or options that exclude each other."""


class TraceError(TracekitError):
    """A path that is no trace, a damaged store, or a trace that lacks a part that was asked for."""


class PolicyError(TracekitError):
    """A policy that cannot be found or loaded, or that does not fit the trace or the observation."""
