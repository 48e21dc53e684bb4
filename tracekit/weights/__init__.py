"""Trained weights that ship with the package, each in a directory of its own beside its model card."""

from __future__ import annotations

from pathlib import Path

__all__ = ["packaged_policy"]


def packaged_policy(name: str) -> Path | None:
    """The policy directory `name` (`reference`, or `blind`: its control without eyes), None where it is not shipped."""
    directory = Path(__file__).parent / name
    return directory if (directory / "model.safetensors").is_file() else None
