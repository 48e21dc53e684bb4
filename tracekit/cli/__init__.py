"""The command `tracekit`: one small file per verb."""

from tracekit.cli.app import main

__all__ = ["main"]
