"""Names of the arrays of a trace, in one place. Every path is below `episodes/<id>/`."""

from __future__ import annotations

__all__ = [
    "ACTION_EXECUTED",
    "ACTION_NOISE",
    "ACTION_POLICY",
    "ACTION_SAMPLES",
    "ACTION_TIME_NS",
    "ATTENTION",
    "ATTENTION_ACTION",
    "ATTENTION_ENTROPY",
    "ATTENTION_MAPS",
    "CAPTURE_HOOKS_NS",
    "CAPTURE_REDUCTION_NS",
    "ENCODE_NS",
    "FPS_STARTS",
    "HANDOVER_NS",
    "KEPT",
    "LAST_ROW",
    "MEAN_ALL_ROWS",
    "OBSERVED",
    "PHASE",
    "POINTS",
    "POINT_CENTRES",
    "POINT_PATCH",
    "PRUNED_FROM",
    "QK_TEXT_LAYER0",
    "QUEUE_WAIT_NS",
    "ROWS",
    "ROWS_DIGEST",
    "STAGES_NS",
    "STATE",
    "STEP_NUMBER",
    "STEP_START_NS",
    "TEXT_IDS",
    "WALL_NS",
    "decision",
    "depth",
    "generator",
    "hidden",
    "image",
    "margin",
    "norms",
    "pruner_state",
    "score",
    "segmentation",
    "time_ns",
]

STEP_NUMBER = "step_number"
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
LAST_ROW = "observables/last_row"
QK_TEXT_LAYER0 = "observables/qk_text_layer0"
MEAN_ALL_ROWS = "observables/mean_all_rows"
ATTENTION_ENTROPY = "observables/attention_entropy"
ATTENTION_MAPS = "attention/maps"
ACTION_NOISE = "action/noise"
ACTION_SAMPLES = "action/samples"
ACTION_POLICY = "action/policy"
ACTION_EXECUTED = "action/executed"
ACTION_TIME_NS = "action/time_ns"
KEPT = "decision/kept"
OBSERVED = "decision/observed"
PRUNED_FROM = "decision/pruned_from"
STEP_START_NS = "timing/step_start_ns"
STAGES_NS = "timing/stages_ns"
WALL_NS = "timing/wall_ns"
CAPTURE_HOOKS_NS = "timing/capture_hooks_ns"
CAPTURE_REDUCTION_NS = "timing/capture_reduction_ns"
HANDOVER_NS = "timing/handover_ns"
QUEUE_WAIT_NS = "timing/queue_wait_ns"
ENCODE_NS = "timing/encode_ns"


def generator(name: str) -> str:
    """State of a random generator of the process at the start of the step."""
    return f"generators/{name}"


def image(view: str) -> str:
    """RGB image of a view (LeRobot's observation.images.<view>)."""
    return f"observation/images/{view}"


def decision(name: str) -> str:
    """A mask of the pruner's answer, or a reason for it."""
    return f"decision/{name}"


def margin(name: str) -> str:
    """Signed distance of every patch to the threshold called `name`."""
    return f"margin/{name}"


def pruner_state(name: str) -> str:
    """An array of the pruner's state after the step."""
    return f"pruner_state/{name}"


def depth(view: str) -> str:
    """Depth image of a view."""
    return f"observation/depth/{view}"


def segmentation(view: str) -> str:
    """Segmentation image of a view."""
    return f"observation/segmentation/{view}"


def time_ns(sensor: str) -> str:
    """Measured monotonic time stamp of a sensor reading."""
    return f"observation/time_ns/{sensor}"


def hidden(site: str) -> str:
    """Hidden states of chosen layers: `block`, `attention` or `mlp`."""
    return f"hidden/{site}"


def norms(feature: str) -> str:
    """L1 norms of a final-layer feature per visual token."""
    return f"observables/norms/{feature}"


def score(reduction: str, name: str) -> str:
    """A score under the reduction whose digest is `reduction` (its first 16 hex digits name the folder)."""
    return f"scores/{reduction[:16]}/{name}"
