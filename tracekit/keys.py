"""Names of the arrays of a trace, in one place. Every path is below `episodes/<id>/`."""

from __future__ import annotations

__all__ = [
    "ACTION_EXECUTED",
    "ACTION_NOISE",
    "ACTION_POLICY",
    "ACTION_SAMPLES",
    "ATTENTION",
    "ATTENTION_ACTION",
    "FPS_STARTS",
    "PHASE",
    "POINTS",
    "POINT_CENTRES",
    "POINT_PATCH",
    "ROWS",
    "ROWS_DIGEST",
    "STAGES_NS",
    "STATE",
    "TEXT_IDS",
    "WALL_NS",
    "depth",
    "generator",
    "image",
    "norms",
    "score",
    "segmentation",
    "time_ns",
]

STATE = "observation/state"
POINTS = "observation/points"
PHASE = "annotation/phase"
TEXT_IDS = "tokens/text_ids"
FPS_STARTS = "tokens/fps_starts"
POINT_CENTRES = "tokens/point_centres"
POINT_PATCH = "tokens/point_patch"
ROWS = "tokens/prefix_rows"
ROWS_DIGEST = "tokens/prefix_digest"
ATTENTION = "observables/attention"
ATTENTION_ACTION = "observables/attention_action"
ACTION_NOISE = "action/noise"
ACTION_SAMPLES = "action/samples"
ACTION_POLICY = "action/policy"
ACTION_EXECUTED = "action/executed"
STAGES_NS = "timing/stages_ns"
WALL_NS = "timing/wall_ns"


def generator(name: str) -> str:
    """State of a random generator of the process at the start of the step."""
    return f"generators/{name}"


def image(view: str) -> str:
    """RGB image of a view (LeRobot's observation.images.<view>)."""
    return f"observation/images/{view}"


def depth(view: str) -> str:
    """Depth image of a view."""
    return f"observation/depth/{view}"


def segmentation(view: str) -> str:
    """Segmentation image of a view."""
    return f"observation/segmentation/{view}"


def time_ns(sensor: str) -> str:
    """Measured monotonic time stamp of a sensor reading."""
    return f"observation/time_ns/{sensor}"


def norms(feature: str) -> str:
    """L1 norms of a final-layer feature per visual token."""
    return f"observables/norms/{feature}"


def score(reduction: str, name: str) -> str:
    """A score under the reduction whose digest is `reduction` (its first 16 hex digits name the folder)."""
    return f"scores/{reduction[:16]}/{name}"
