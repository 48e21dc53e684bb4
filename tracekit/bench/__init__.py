"""Benchmarks that users run on their own machine: times beside operations, bytes and the machine's measured limits."""

from tracekit.bench.capture import CaptureReport, bench_capture
from tracekit.bench.limits import Limits, measure_limits
from tracekit.bench.model import Line, ModelReport, bench_model

__all__ = [
    "CaptureReport",
    "Limits",
    "Line",
    "ModelReport",
    "bench_capture",
    "bench_model",
    "measure_limits",
]
