"""VLA-Pruner (arXiv 2511.16449) per modality: what the prompt or recent actions attend to, thinned for diversity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tracekit.errors import TraceError
from tracekit.pruning.base import Decision, DecisionKey, Pruner, Shape, StageTimer, untimed
from tracekit.pruning.diversity import most_diverse
from tracekit.pruning.observables import Observables
from tracekit.pruning.options import check_choices, check_range, kept_count
from tracekit.pruning.ranking import group_mean, layer_of, part, top

__all__ = ["VLA_PRUNER", "VlaPrunerConfig", "VlaPrunerState"]

KIND = "vla_pruner"
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class VlaPrunerConfig:
    """How the two scores are made.

    `rate`: share of each modality's tokens to prune. `layer`: K; the semantic score is the attention of layer K - 1,
    mean over heads and prefill rows, and tokens are dropped after block K. `action_layer`: layer of the action score,
    default 15 of 32 in proportion. `window`: w entries of action attention, weighted by `decay` per entry of age: the
    newest the heaviest (`variant = paper`) or the oldest (`released`). `warmup`: nothing is pruned until the window is
    full of control `steps`; its entries are the `denoise` passes instead; or pruning starts with what there is
    (`none`).
    """

    rate: float = 0.5
    variant: Literal["paper", "released"] = "paper"
    warmup: Literal["steps", "denoise", "none"] = "steps"
    layer: int = 3
    action_layer: int | None = None
    window: int = 3
    decay: float = 0.8

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, "rate", 0, 1, "the share of tokens to prune", open_end=True)
        check_range(self, "layer", 1, 10_000, "a layer index, and the attention of the layer before it is read")
        check_range(self, "window", 1, 1000, "a number of entries")
        check_range(self, "decay", 0, 1, "a weight per entry of age")
        if self.action_layer is not None:
            check_range(self, "action_layer", 0, 10_000, "a layer index")


@dataclass(frozen=True, slots=True)
class VlaPrunerState:
    """Action attention of the last entries, oldest first (n ≤ window of them).

    `image`: (n, N_2D) float64. `point`: (n, N_3D) float64, with `patch` (n, N_3D) int32 and `centres` (n, N_3D, 3)
    float32 of those point tokens: a token's index means nothing in another step, its place does.
    """

    image: Doubles
    point: Doubles
    patch: npt.NDArray[np.int32]
    centres: npt.NDArray[np.float32]

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Plain arrays by name, as a trace recorded while pruning stores them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> VlaPrunerState:
        """Inverse of `to_arrays`."""
        return cls(**{field.name: np.asarray(arrays[field.name]) for field in fields(cls)})


def _initial_state(_config: VlaPrunerConfig, shape: Shape) -> VlaPrunerState:
    return VlaPrunerState(
        image=np.zeros((0, shape.n_2d)),
        point=np.zeros((0, shape.n_3d)),
        patch=np.zeros((0, shape.n_3d), np.int32),
        centres=np.zeros((0, shape.n_3d, 3), np.float32),
    )


def _decide(
    seen: Observables,
    state: VlaPrunerState,
    config: VlaPrunerConfig,
    _key: DecisionKey,
    shape: Shape,
    *,
    stage: StageTimer = untimed,
    **_: Any,
) -> tuple[Decision, VlaPrunerState]:
    with stage("fuse"):
        return _choose(seen, state, config, shape), _remember(seen, state, config, shape)


def _decide_at(
    layer: int, seen: Observables, state: VlaPrunerState, config: VlaPrunerConfig, _key: DecisionKey, shape: Shape
) -> Decision | None:
    return _choose(seen, state, config, shape) if layer == config.layer else None


def _choose(seen: Observables, state: VlaPrunerState, config: VlaPrunerConfig, shape: Shape) -> Decision:
    if config.warmup != "none" and len(state.image) < config.window:
        points = np.ones(shape.n_3d, np.bool_) if shape.n_3d else None
        return Decision(np.ones(shape.n_2d, np.bool_), None, keep_3d_tokens=points, pruned=False)
    rows = part(seen, "mean_all_rows", KIND)
    semantic = rows[layer_of(len(rows), config.layer - 1, "layer")]
    embeddings = part(seen, "embeddings", KIND)
    places = range(len(state.image))  # from the oldest entry to the newest
    weights = [config.decay ** (place if config.variant == "released" else len(places) - 1 - place) for place in places]
    action = np.zeros(shape.n_2d + shape.n_3d)
    for entry, weight in enumerate(weights):
        action[: shape.n_2d] += weight * state.image[entry]
        if shape.n_3d:
            action[shape.n_2d :] += weight * _carried_over(state, entry, seen)
    masks = [
        _pick(semantic[span], action[span], embeddings[span], config.rate, bool(weights))
        for span in (slice(0, shape.n_2d), slice(shape.n_2d, None))
        if semantic[span].size
    ]
    return Decision(masks[0], None, keep_3d_tokens=masks[1] if shape.n_3d else None)


def _pick(
    semantic: npt.NDArray[np.float32],
    action: Doubles,
    embeddings: npt.NDArray[np.float32],
    rate: float,
    has_history: bool,
) -> npt.NDArray[np.bool_]:
    """The union of both top-M sets, thinned to the M most diverse tokens."""
    count = kept_count(semantic.size, rate)
    union = top(semantic, count)
    if has_history:
        union |= top(action, count)
    keep = np.zeros(semantic.size, np.bool_)
    keep[most_diverse(embeddings, np.flatnonzero(union), count)] = True
    return keep


def _carried_over(state: VlaPrunerState, entry: int, seen: Observables) -> Doubles:
    """(N_3D,) an entry's action attention at the places of today's point tokens.

    A projected token takes the mean of the entry's tokens in its patch (0 without any), an unprojected one that of the
    nearest token of the entry.
    """
    patch = part(seen, "patch", KIND)
    values, then = state.point[entry], state.patch[entry]
    out = np.zeros(patch.size)
    for place in np.unique(patch[patch >= 0]):
        members = np.flatnonzero(then == place)
        if members.size:
            out[patch == place] = np.add.accumulate(values[members])[-1] / members.size
    lost = np.flatnonzero(patch < 0)
    if lost.size:
        centres = part(seen, "centres", KIND).astype(np.float64)
        offset = centres[lost, None, :] - state.centres[entry].astype(np.float64)
        square = offset * offset
        out[lost] = values[np.argmin(square[..., 0] + square[..., 1] + square[..., 2], axis=1)]
    return out


def _remember(seen: Observables, state: VlaPrunerState, config: VlaPrunerConfig, shape: Shape) -> VlaPrunerState:
    layers = len(seen.attention)
    default = 15 * layers // 32 if config.action_layer is None else config.action_layer
    layer = layer_of(layers, default, "action_layer")
    passes = group_mean(seen, layer, "action", KIND)[None]
    if seen.attention_action is not None:
        passes = np.concatenate([passes, part(seen, "attention_action", KIND)[:, layer].astype(np.float64)])
    if config.warmup != "denoise":
        passes = np.add.accumulate(passes)[-1:] / len(passes)
    count = len(passes)
    patch = np.zeros((count, 0), np.int32)
    centres = np.zeros((count, 0, 3), np.float32)
    if shape.n_3d:
        patch = np.repeat(part(seen, "patch", KIND)[None], count, 0)
        centres = np.repeat(_centres(seen, patch[0])[None], count, 0)

    def latest(old: npt.NDArray[Any], new: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.concatenate([old, new])[-config.window :]

    return VlaPrunerState(
        image=latest(state.image, passes[:, : shape.n_2d]),
        point=latest(state.point, passes[:, shape.n_2d :]),
        patch=latest(state.patch, patch),
        centres=latest(state.centres, centres),
    )


def _centres(seen: Observables, patch: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """Centres of the point tokens; only unprojected ones are ever looked up by them."""
    if seen.centres is None and (patch >= 0).all():
        return np.full((patch.size, 3), np.inf, np.float32)
    if seen.centres is None:
        raise TraceError("pruner 'vla_pruner' needs the centres of unprojected point tokens, which this trace lacks")
    return seen.centres


VLA_PRUNER = Pruner(
    kind=KIND,
    config=VlaPrunerConfig,
    observes="in_network",
    reads="observables",
    requires=lambda _config: frozenset({"mean_all_rows", "embeddings", "attention", "attention_action", "centres"}),
    initial_state=_initial_state,
    decide=_decide,
    needs_pinned_fps=lambda _config: True,
    behind=lambda config: config.layer,
    longest_state=lambda config: config.window,
    decide_at=_decide_at,
    remember=_remember,
)
