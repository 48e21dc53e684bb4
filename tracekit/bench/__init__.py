"""Benchmarks that users run on their own machine: times beside operations, bytes and the machine's measured limits."""

from tracekit.bench.capture import CaptureReport, bench_capture
from tracekit.bench.limits import Limits, measure_limits
from tracekit.bench.model import Line, ModelReport, bench_model
from tracekit.bench.pruners import PrunerCost, PrunersReport, bench_pruners

__all__ = [
    "CaptureReport",
    "Limits",
    "Line",
    "ModelReport",
    "PrunerCost",
    "PrunersReport",
    "bench_capture",
    "bench_model",
    "bench_pruners",
    "measure_limits",
]
