"""Benchmarks that users run on their own machine: times beside operations, bytes and the machine's measured limits."""

from tracekit.bench.capture import CaptureReport, bench_capture
from tracekit.bench.limits import Limits
from tracekit.bench.measuring import Bound, Line
from tracekit.bench.model import ModelReport, bench_model
from tracekit.bench.pruners import PrunerCost, PrunersReport, bench_pruners

__all__ = [
    "Bound",
    "CaptureReport",
    "Limits",
    "Line",
    "ModelReport",
    "PrunerCost",
    "PrunersReport",
    "bench_capture",
    "bench_model",
    "bench_pruners",
]
