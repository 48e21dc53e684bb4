"""Names separated by commas, as `--episodes` and `--task` take them."""

from __future__ import annotations

from tracekit.errors import ConfigError

__all__ = ["names"]


def names(text: str | None, option: str = "--episodes") -> list[str]:
    """The names in `text`, none where the option was left out; raises ConfigError for an empty one."""
    found = [] if text is None else [name.strip() for name in text.split(",")]
    if not all(found):
        raise ConfigError(f"{option} {text!r}: one of the names is empty; separate names by single commas")
    return found
