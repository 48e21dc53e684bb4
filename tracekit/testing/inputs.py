"""Random inputs for pruners: plausible in shape and range, with ties, empty patches and unprojected points."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit.layout import PATCHES_PER_VIEW
from tracekit.pruning import Observables, Scores, Shape

__all__ = ["LAYERS", "declared", "random_observables", "random_scores"]

LAYERS = 8
HEADS, PASSES, WIDTH, PIXELS = 4, 4, 16, 64


def random_scores(shape: Shape, steps: int, seed: int = 0) -> Scores:
    """Scores (steps, N_2D) of an episode in which neighbouring steps resemble each other; a fifth of the values tie."""
    rng = np.random.default_rng(seed)
    points = rng.poisson(min(shape.n_3d / shape.n_2d, 1.0), (steps, shape.n_2d)).astype(np.int32)

    def norms(scale: float, *, of_points: bool = False) -> npt.NDArray[np.float32]:
        drift = rng.lognormal(0, 1, shape.n_2d) * rng.lognormal(0, 0.3, (steps, shape.n_2d))
        values = scale * np.where(rng.random((steps, shape.n_2d)) < 0.2, 1.0, drift)
        return (values * (points > 0) if of_points else values).astype(np.float32)

    attention_3d = norms(0.3, of_points=True)
    ortho = (attention_3d * rng.random(attention_3d.shape)).astype(np.float32)
    return Scores(norms(1.0), norms(0.2, of_points=True), norms(1.0), attention_3d, ortho, points)


def random_observables(
    shape: Shape, seed: int = 0, *, layers: int = LAYERS, heads: int = HEADS, width: int = WIDTH
) -> Observables:
    """Every observable of one step of a policy with so many layers, heads and numbers per row, and 4 denoise passes."""
    rng = np.random.default_rng(seed)
    tokens = shape.n_2d + shape.n_3d

    def shares(*sizes: int) -> npt.NDArray[np.float32]:
        return rng.exponential(1 / tokens, (*sizes, tokens)).astype(np.float32)

    patch = rng.integers(-1, shape.n_2d, (PASSES, shape.n_3d)).astype(np.int32)
    views = max(shape.n_2d // PATCHES_PER_VIEW, 1)
    return Observables(
        norms={name: rng.lognormal(3, 0.5, tokens).astype(np.float32) for name in ("prenorm", "postnorm", "logits")},
        attention=shares(layers, heads, 3),
        groups=("text", "state", "action"),
        patch=patch[0] if shape.n_3d else None,
        nearest_patch=np.abs(patch[0]) if shape.n_3d else None,
        attention_action=shares(PASSES - 1, layers),
        patch_later=patch[1:] if shape.n_3d else None,
        last_row=shares(layers),
        mean_all_rows=shares(layers),
        qk_text_layer0=rng.normal(size=tokens).astype(np.float32),
        embeddings=rng.normal(size=(tokens, width)).astype(np.float32),
        centres=rng.random((shape.n_3d, 3)).astype(np.float32) if shape.n_3d else None,
        images=np.kron(rng.integers(0, 256, (views, 8, 8, 3)), np.ones((1, PIXELS // 8, PIXELS // 8, 1))).astype(
            np.uint8
        ),
        displacement_m=float(rng.uniform(0, 0.15)),
    )


def declared(seen: Any, required: frozenset[str], shape: Shape) -> Any:
    """`seen` as a trace shows it that has nothing but what is `required`; scores, which come all six, as they are."""
    if not isinstance(seen, Observables):
        return seen
    always = {"patch", "patch_later", "kept"}  # a trace that has the points' patches shows them
    hidden: dict[str, Any] = dict.fromkeys({field.name for field in dataclasses.fields(seen)} - required - always)
    if "norms" in hidden:
        hidden["norms"] = {}
    if "attention" in hidden:
        hidden["attention"] = np.zeros((0, 0, 0, shape.n_2d + shape.n_3d), np.float32)
        hidden["groups"] = ()
    else:
        hidden.pop("groups", None)
    return dataclasses.replace(seen, **hidden)
