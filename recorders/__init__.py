"""Everything that makes a trace: the recorder, and the simulator it can record."""

from recorders.recorder import EpisodeRecording, Recorder, StepRecording
from tracekit.capture import CaptureSpec

__all__ = ["CaptureSpec", "EpisodeRecording", "Recorder", "StepRecording"]
