"""Random pruning: k = round(N·(1 - rate)) tokens drawn without replacement per modality."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tracekit.errors import ConfigError
from tracekit.philox import Modality, Purpose, uniforms
from tracekit.pruning.base import Decision, DecisionKey, Pruner, Shape, StageTimer, untimed
from tracekit.pruning.options import check_choices, check_range, kept_count

__all__ = ["NAIVE", "NaiveConfig"]


@dataclass(frozen=True, slots=True)
class NaiveConfig:
    """What to draw.

    `rate`: share of each modality's tokens to prune; at least one token stays. `redraw`: a new draw at every `step`,
    or that of step 1 for the whole `episode`. `paired`: one draw, the same indices in both modalities. `modalities`:
    `2d` (`3d`) prunes image (point) tokens only. The kept indices are the same in all denoise passes of a step.
    """

    rate: float = 0.5
    redraw: Literal["step", "episode"] = "step"
    paired: bool = False
    modalities: Literal["both", "2d", "3d"] = "both"
    seed: int = 0

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, "rate", 0, 1, "the share of tokens to prune", open_end=True)
        check_range(self, "seed", 0, 2**64 - 1, "the key of the random draws")


def _initial_state(config: NaiveConfig, shape: Shape) -> None:
    if config.paired and shape.n_2d != shape.n_3d:
        raise ConfigError(
            f"pruner.paired: {shape.n_2d} image tokens and {shape.n_3d} point tokens do not pair; set paired = false"
        )
    if config.modalities == "3d" and not shape.n_3d:
        raise ConfigError("pruner.modalities = '3d': the policy has no point tokens; use '2d' or 'both'")


def _decide(
    _seen: None,
    state: None,
    config: NaiveConfig,
    key: DecisionKey,
    shape: Shape,
    *,
    stage: StageTimer = untimed,
    **_: Any,
) -> tuple[Decision, None]:
    with stage("fuse"):
        keep_2d = np.ones(shape.n_2d, np.bool_)
        keep_3d = np.ones(shape.n_3d, np.bool_) if shape.n_3d else None
        if config.modalities != "3d":
            keep_2d = _draw(config, key, Modality.PATCH if config.paired else Modality.IMAGE, shape.n_2d)
        if config.modalities != "2d" and shape.n_3d:
            keep_3d = _draw(config, key, Modality.PATCH if config.paired else Modality.POINT, shape.n_3d)
        return Decision(keep_2d, None, keep_3d_tokens=keep_3d), state


def _draw(config: NaiveConfig, key: DecisionKey, modality: Modality, tokens: int) -> npt.NDArray[np.bool_]:
    """(tokens,) True for the tokens with the k lowest uniforms, ties by lower index."""
    step = 1 if config.redraw == "episode" else key.step
    drawn = uniforms(
        DecisionKey(key.seed, key.episode_uid, step), Purpose.TOKENS, modality, np.arange(tokens, dtype=np.int64)
    )
    keep = np.zeros(tokens, np.bool_)
    keep[np.argsort(drawn, kind="stable")[: kept_count(tokens, config.rate)]] = True
    return keep


NAIVE = Pruner(
    kind="naive",
    config=NaiveConfig,
    observes="none",
    reads="nothing",
    requires=lambda _config: frozenset(),
    initial_state=_initial_state,
    decide=_decide,
)
