"""What a recording costs in bytes per control step, by key and capture preset, from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tracekit.bench.model import INSTRUCTION, TEXT_IDS, preset_config
from tracekit.capture import PRESETS, CaptureSpec
from tracekit.layout import PATCHES_PER_VIEW, TokenLayout
from tracekit.model import MLAConfig
from tracekit.observation import Observation
from tracekit.sizes import StepShapes, eager_bytes_per_pass, step_bytes

__all__ = ["CaptureReport", "bench_capture"]

TEXT_TOKENS = {"reference": 15}
"""Text tokens of the instruction with its prompt, where they are not the release's."""


@dataclass(frozen=True, slots=True)
class CaptureReport:
    """`by_capture`: capture preset -> key -> bytes per control step, uncompressed. `eager_per_pass`: hidden states and
    attention maps of all layers of one pass; `passes`: how many there are.
    """  # noqa: D205  # one sentence per field

    preset: str
    by_capture: dict[str, dict[str, int]]
    eager_per_pass: int
    passes: int

    @property
    def totals(self) -> dict[str, int]:
        """Capture preset -> bytes per control step."""
        return {name: sum(sizes.values()) for name, sizes in self.by_capture.items()}

    def to_json(self) -> dict[str, Any]:
        """The object that `bench capture --json` prints."""
        return {
            "preset": self.preset,
            "bytes_per_step": self.by_capture,
            "total_bytes_per_step": self.totals,
            "eager_bytes_per_pass": self.eager_per_pass,
            "passes": self.passes,
        }


def bench_capture(preset: str) -> CaptureReport:
    """Sizes for a policy of `preset` that sees one image and one cloud; raises ConfigError for an unknown preset."""
    shapes, observation = _shapes(preset_config(preset)), _observation(preset_config(preset))
    return CaptureReport(
        preset,
        {name: step_bytes(shapes, observation, CaptureSpec.preset(name)) for name in PRESETS},
        eager_bytes_per_pass(shapes),
        shapes.passes,
    )


def _shapes(config: MLAConfig) -> StepShapes:
    layout = TokenLayout.of_lengths(
        ("bos", 1),
        ("point", config.point_tokens),
        *((f"image.{view}", PATCHES_PER_VIEW) for view in config.views),
        *((("tactile", 1),) if config.tactile_token else ()),
        ("text", TEXT_TOKENS.get(config.name, len(TEXT_IDS) - 1)),
        ("proprio", 1),
        ("timestep", 1),
        ("action", config.action_window),
        ("tail", 1),
    )
    return StepShapes(
        layout=layout,
        layers=config.layers,
        heads=config.heads,
        width=config.hidden_size,
        passes=config.ddim_steps,
        action_shape=(config.action_window, config.action_size),
        action_spec=config.action_spec,
        fps_stages=len(config.fps_sizes),
    )


def _observation(config: MLAConfig) -> Observation:
    return Observation(
        images={view: np.zeros((224, 224, 3), np.uint8) for view in config.views},
        points=np.zeros((config.points, 3), np.float32),
        state=np.zeros(config.action_size),
        instruction=INSTRUCTION,
        time_ns=dict.fromkeys(config.views, 0),
    )
