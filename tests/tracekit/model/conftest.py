import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tracekit.actions import ActionSpec
from tracekit.camera import Camera
from tracekit.model import MLA, MLAConfig, Normalisation, WordTokenizer, initialise
from tracekit.observation import Observation

WORDS = ("in", ":", "what", "action", "should", "the", "robot", "take", "to", "?", "out", "close", "box", "red")


def tiny_config(**changes) -> MLAConfig:
    """Every part present, at the smallest widths that keep them apart: grouped queries, two views, three actions."""
    passes = Normalisation((-0.5,) * 3 + (-1.0,) * 6 + (0.0,), (0.5,) * 3 + (1.0,) * 7, (True,) * 3 + (False,) * 7)
    values = {
        "name": "tiny",
        "hidden_size": 32,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "intermediate_size": 48,
        "vocab_size": len(WORDS) + 3,
        "action_spec": ActionSpec(),
        "state": passes,
        "action": passes,
        "image_width": 16,
        "points": 64,
        "point_width": 6,
        "point_neighbours": 8,
        "point_outputs": 24,
        "action_window": 3,
        "ddim_steps": 4,
        "views": ("front", "wrist"),
        "max_text": 32,
    }
    return MLAConfig(**{**values, **changes})


def tiny_policy(seed: int = 1, **changes) -> MLA:
    return initialise(MLA(tiny_config(**changes), WordTokenizer(WORDS)), seed)


def make_observation(config: MLAConfig, seed: int = 0, **changes) -> Observation:
    random = np.random.default_rng(seed)
    values = {
        "images": {view: random.integers(0, 256, (224, 224, 3), dtype=np.uint8) for view in config.views},
        "points": random.uniform(-0.4, 0.4, (config.points, 3)).astype(np.float32),
        "state": random.uniform(-0.4, 0.4, config.action_size),
        "instruction": "close the red box",
    }
    return Observation(**{**values, **changes})


def looking_down(x: float = 0.0) -> Camera:
    """A camera two metres above the origin, shifted along x, looking down."""
    return Camera(224, 224, 300.0, 300.0, 112.0, 112.0, ((1, 0, 0), (0, -1, 0), (0, 0, -1)), (x, 0.0, 2.0))


@pytest.fixture
def policy() -> MLA:
    return tiny_policy()


@pytest.fixture
def observation(policy: MLA) -> Observation:
    return make_observation(policy.config)


@pytest.fixture(scope="session")
def golden() -> Path:
    root = os.environ.get("TRACEKIT_GOLDEN")
    if not root or not (Path(root) / "mla_tiny").is_dir():
        pytest.skip("TRACEKIT_GOLDEN does not point to the golden data")
    return Path(root) / "mla_tiny"


@pytest.fixture
def no_grad():
    with torch.inference_mode():
        yield
