"""Bringing observables to the host without stopping the device: copies on a stream of their own, into pinned memory.

On the CPU there is nothing to copy: a result is handed over as it is. On a GPU the copy stream waits for the results
(an event, not a synchronisation), copies, and is waited for once, when the step is over or a pruner must decide. Only
copies run there: a matrix product on it would compete with the policy's own. Every copy has a pinned buffer of its own,
which PyTorch's allocator takes back when it is no longer referenced, so no buffer is written while it is still read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["HostCopies"]


class HostCopies:
    """Copies from `device`. `cuda`: the module that has streams and events."""

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self._cuda = cuda
        self._stream: Any = cuda.Stream(device) if device.type == "cuda" else None
        self._done: Any = None

    def start(self, values: Tensor) -> Tensor:
        """`values` on the host; complete after `wait`. The caller must not write to `values` afterwards."""
        if self._stream is None:
            return values.detach()
        host = self._pinned(values)
        self._stream.wait_stream(self._cuda.current_stream())
        with self._cuda.stream(self._stream):
            host.copy_(values, non_blocking=True)
        values.record_stream(self._stream)  # its memory must not be given to another tensor before the copy ran
        self._done = self._stream.record_event()
        return host

    def wait(self) -> None:
        """Return when everything that was started is on the host."""
        if self._done is not None:
            self._done.synchronize()
            self._done = None

    def _pinned(self, values: Tensor) -> Tensor:
        return torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
