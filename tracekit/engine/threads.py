"""The thread count is part of a bitwise claim, so it is set for a run and put back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tracekit.config import ExecutionConfig

__all__ = ["execution_threads"]


@contextmanager
def execution_threads(execution: ExecutionConfig) -> Iterator[None]:
    """Compute with `execution.threads` intra-operation threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(execution.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
