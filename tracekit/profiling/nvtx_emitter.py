"""The only module that emits NVTX: one domain `tracekit`, one category and one registered string per stage.

Ids never go into messages: the payload of a range packs (configuration, episode, step) into 64 bits.
Without a profiler attached the nvtx package hands out a dummy domain whose calls cost nanoseconds.
"""

from __future__ import annotations

from typing import Any

import nvtx

from tracekit.profiling.stages import STAGES, Stage

__all__ = ["NvtxEmitter", "pack_payload", "unpack_payload"]

DOMAIN = "tracekit"


def pack_payload(configuration: int, episode: int, step: int) -> int:
    """uint64 payload: configuration index in the top 16 bits, episode index in the next 24, step in the low 24."""
    return (configuration & 0xFFFF) << 48 | (episode & 0xFFFFFF) << 24 | (step & 0xFFFFFF)


def unpack_payload(payload: int) -> tuple[int, int, int]:
    """(configuration, episode, step) of a payload."""
    return payload >> 48 & 0xFFFF, payload >> 24 & 0xFFFFFF, payload & 0xFFFFFF


class NvtxEmitter:
    """Opens and closes ranges named after stages. The attributes of each stage are made once and reused."""

    def __init__(self) -> None:
        self._domain = nvtx.get_domain(DOMAIN)
        self._attributes: dict[str, Any] = {
            stage: self._domain.get_event_attributes(
                message=self._domain.get_registered_string(stage), category=self._domain.get_category_id(stage)
            )
            for stage in STAGES
        }

    def push(self, stage: Stage, payload: int) -> None:
        """Open a range of `stage` on this thread."""
        attributes = self._attributes[stage]
        if attributes is not None:  # None: no profiler is attached
            attributes.payload = payload
        self._domain.push_range(attributes)

    def pop(self) -> None:
        """Close the innermost range of this thread."""
        self._domain.pop_range()
