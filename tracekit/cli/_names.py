"""Names separated by commas, as `--episodes` takes them."""

from __future__ import annotations

from tracekit.errors import TraceError

__all__ = ["names"]


def names(text: str | None) -> list[str]:
    """The names in `text`, none where the option was left out; raises TraceError for an empty one."""
    found = [] if text is None else [name.strip() for name in text.split(",")]
    if not all(found):
        raise TraceError(f"--episodes {text!r}: give episode ids separated by commas, or leave the option out")
    return found
