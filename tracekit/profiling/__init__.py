"""Where the time of a control step goes: stages, clocks and the NVTX emitter."""

from tracekit.profiling.clock import StageClock
from tracekit.profiling.nvtx_emitter import NvtxEmitter, pack_payload, unpack_payload
from tracekit.profiling.stages import STAGES, Stage

__all__ = ["STAGES", "NvtxEmitter", "Stage", "StageClock", "pack_payload", "unpack_payload"]
