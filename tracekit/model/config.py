"""Every width of an MLA policy and what its numbers mean, as one frozen dataclass; the presets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit.actions import ActionSpec
from tracekit.errors import PolicyError
from tracekit.model.cameras import CAMERAS
from tracekit.model.diffusion import TRAINING_STEPS
from tracekit.model.text import WordTokenizer
from tracekit.model.vocabulary import REFERENCE_WORDS

__all__ = ["MLAConfig", "Normalisation", "mla_7b", "reference"]


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Linear map of [q01, q99] onto [-1, 1], per dimension, where `mask` is True; elsewhere numbers pass through."""

    q01: tuple[float, ...]
    q99: tuple[float, ...]
    mask: tuple[bool, ...]

    def __post_init__(self) -> None:
        if not len(self.q01) == len(self.q99) == len(self.mask):
            raise PolicyError(
                f"statistics: q01, q99 and mask have {len(self.q01)}, {len(self.q99)} and {len(self.mask)} entries; "
                "give one of each per dimension"
            )

    def normalise(self, values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
        """clip(2(s - q01)/(q99 - q01 + 1e-8) - 1, ±1) of `values` (..., size), in float64."""
        low, high = np.asarray(self.q01), np.asarray(self.q99)
        scaled = 2 * (np.asarray(values, np.float64) - low) / (high - low + 1e-8) - 1
        return np.clip(np.where(self.mask, scaled, values), -1, 1).astype(np.float64)

    def restore(self, values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
        """(a + 1)/2 · (q99 - q01) + q01 of normalised `values` (..., size), in float64."""
        low, high = np.asarray(self.q01), np.asarray(self.q99)
        normalised = np.asarray(values, np.float64)
        return np.where(self.mask, 0.5 * (normalised + 1) * (high - low) + low, normalised)


@dataclass(frozen=True, slots=True)
class MLAConfig:
    """An MLA policy without its weights.

    Backbone: `hidden_size` ... `rope_theta`, with grouped queries where `kv_heads` < `heads`. Image tower:
    `image_width` features in `image_heads` heads. Point tower: `points` in, halved by every entry of `point_blocks`
    (residual blocks of that stage), `point_neighbours` per group, `point_width` after the first projection and
    `point_outputs` at the end. Action: `action_window` = T actions per chunk, `ddim_steps` passes. `tactile_token`: the
    release's all-zero row before the text. `image_position`: a position code on image tokens (the release has none).
    `views`: image views in sequence order, front first; `cameras`: view -> built-in camera used where an observation
    brings none. `max_text`: most text tokens, BOS and tail not counted.
    """

    name: str
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    intermediate_size: int
    vocab_size: int
    action_spec: ActionSpec
    state: Normalisation
    action: Normalisation
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    image_width: int = 1024
    image_heads: int = 8
    points: int = 1024
    point_width: int = 96
    point_neighbours: int = 81
    point_blocks: tuple[int, ...] = (2, 1)
    point_outputs: int = 768
    action_window: int = 1
    ddim_steps: int = 8
    tactile_token: bool = True
    image_position: bool = False
    views: tuple[str, ...] = ("front",)
    cameras: Mapping[str, str] = field(default_factory=dict)
    max_text: int = 256

    def __post_init__(self) -> None:
        def refuse(what: str, remedy: str) -> None:
            raise PolicyError(f"policy {self.name!r}: {what}; {remedy}")

        for f in fields(self):
            if f.type in {"int", "float"} and not _is_size(getattr(self, f.name), whole=f.type == "int"):
                kind = "whole and positive" if f.type == "int" else "positive"
                refuse(f"{f.name} = {getattr(self, f.name)!r}", f"it must be {kind}")
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            refuse(
                f"{self.heads} heads do not divide hidden_size {self.hidden_size} evenly", "heads must be even-sized"
            )
        if self.heads % self.kv_heads:
            refuse(f"kv_heads = {self.kv_heads} does not divide heads = {self.heads}", "choose a divisor")
        if self.image_width % self.image_heads:
            refuse(
                f"image_heads = {self.image_heads} does not divide image_width {self.image_width}", "choose a divisor"
            )
        if self.point_width % 3:
            refuse(f"point_width = {self.point_width}", "its positional code needs a multiple of 3")
        if (
            self.points % 2 ** len(self.point_blocks)
            or self.points >> (len(self.point_blocks) - 1) < self.point_neighbours
        ):
            refuse(
                f"{self.points} points, {len(self.point_blocks)} halvings, {self.point_neighbours} neighbours",
                "these do not fit: give more points or fewer neighbours",
            )
        if self.ddim_steps > TRAINING_STEPS:
            refuse(f"ddim_steps = {self.ddim_steps}", f"the diffusion was trained with {TRAINING_STEPS}")
        if len(self.action.q01) != self.action_spec.size or len(self.state.q01) != self.action_spec.size:
            refuse(
                f"statistics of {len(self.action.q01)} action and {len(self.state.q01)} state numbers",
                f"the action spec ({self.action_spec.rotation_form}) has {self.action_spec.size}",
            )
        unknown = sorted({*self.cameras} - {*self.views}) or sorted({*self.cameras.values()} - {*CAMERAS})
        if unknown:
            refuse(f"cameras name {unknown[0]!r}", f"views are {list(self.views)}, built-in cameras {sorted(CAMERAS)}")

    @property
    def action_size(self) -> int:
        """Numbers per action and per state."""
        return self.action_spec.size

    @property
    def point_tokens(self) -> int:
        """Point tokens after the last stage."""
        return int(self.points >> len(self.point_blocks))

    @property
    def fps_sizes(self) -> tuple[int, ...]:
        """Candidate points of each sampling stage."""
        return tuple(self.points >> i for i in range(len(self.point_blocks)))

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `config.json` and digests."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "config.json") -> MLAConfig:
        """Inverse of `to_json`; raises PolicyError naming unknown and missing keys."""
        known = {f.name for f in fields(cls)}
        unknown, missing = sorted({*data} - known), sorted(known - {*data})
        if unknown or missing:
            raise PolicyError(
                f"{where}: unknown keys {unknown}, missing keys {missing}; restore it from the checkpoint"
            )
        try:
            values = dict(data)
            values["action_spec"] = ActionSpec(**data["action_spec"])
            for key in ("state", "action"):
                values[key] = Normalisation(**{name: tuple(items) for name, items in data[key].items()})
            values["point_blocks"] = tuple(data["point_blocks"])
            values["views"] = tuple(data["views"])
            return cls(**values)
        except (TypeError, AttributeError, KeyError) as error:
            raise PolicyError(f"{where}: not an MLA configuration ({error}); restore it from the checkpoint") from error


def _is_size(value: object, *, whole: bool) -> bool:
    """Whether `value` is a positive, finite number, and an integer where it is to be `whole`."""
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return False
    return 0 < value < math.inf


def _reference_range(low: tuple[float, ...], high: tuple[float, ...]) -> Normalisation:
    """Translation mapped onto ±1; rotation columns and gripper are within ±1 already and pass through."""
    return Normalisation((*low, *(-1.0,) * 6, 0.0), (*high, *(1.0,) * 6, 1.0), (True,) * 3 + (False,) * 7)


def reference() -> MLAConfig:
    """The small policy that is trained on the embedded simulator: about 1.2 M parameters, runs on one CPU core."""
    return MLAConfig(
        name="reference",
        hidden_size=128,
        layers=4,
        heads=4,
        kv_heads=4,
        intermediate_size=352,
        vocab_size=WordTokenizer(REFERENCE_WORDS).size,
        action_spec=ActionSpec(),
        state=_reference_range((-0.2, -0.6, -0.2), (0.65, 0.6, 0.6)),
        action=_reference_range((-0.15,) * 3, (0.15,) * 3),
        image_width=64,
        point_width=24,
        point_neighbours=8,
        image_position=True,
        max_text=48,
    )


def mla_7b(state: Normalisation, action: Normalisation) -> MLAConfig:
    """The release's policy at LLaMA-2 7B widths, with the statistics of the data it was trained on."""
    return MLAConfig(
        name="mla-7b",
        hidden_size=4096,
        layers=32,
        heads=32,
        kv_heads=32,
        intermediate_size=11008,
        vocab_size=32064,
        action_spec=ActionSpec(frame="world", rotation_form="euler_xyz"),
        state=state,
        action=action,
        cameras={"front": "rlbench_front"},
    )
