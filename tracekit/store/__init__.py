"""The trace store: what was recorded, one transaction per episode, in a zarr v3 group that any zarr reader opens.

Writing is append-only and journalled: a killed process loses at most the step it was writing, a power cut at most
16 steps or one second, and neither ever a committed episode. Reading checks every byte it returns.
"""

from tracekit.store.copying import copy_trace
from tracekit.store.dropping import Pruned, prune_store
from tracekit.store.episode_writer import EpisodeWriter
from tracekit.store.measuring import with_measured_codec
from tracekit.store.places import refuse_inside_store
from tracekit.store.reader import Episode, Trace
from tracekit.store.repairing import Repair, repair
from tracekit.store.schema import ArraySpec, EpisodeInfo
from tracekit.store.verifying import Problem, Report, verify
from tracekit.store.writer import TraceWriter

__all__ = [
    "ArraySpec",
    "Episode",
    "EpisodeInfo",
    "EpisodeWriter",
    "Problem",
    "Pruned",
    "Repair",
    "Report",
    "Trace",
    "TraceWriter",
    "copy_trace",
    "prune_store",
    "refuse_inside_store",
    "repair",
    "verify",
    "with_measured_codec",
]
