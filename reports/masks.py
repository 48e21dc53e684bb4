"""The masks over the camera images, step by step: which patches keep image token, point tokens, both, or neither."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from replay import SavedReplay
from tracekit import keys
from tracekit.errors import TraceError
from tracekit.layout import GRID, PATCHES_PER_VIEW
from tracekit.store import Episode, Trace

__all__ = ["draw_masks", "mask_classes"]

CLASSES = ("neither", "2D only", "3D only", "2D and 3D")
COLOURS = ((0.07, 0.07, 0.10, 0.78), (0.12, 0.47, 0.95, 0.55), (0.98, 0.66, 0.05, 0.55), (0.20, 0.78, 0.35, 0.42))
"""RGBA over the camera image, by class: what is dropped is dark, what is kept is tinted."""

MOST_COLUMNS = 8


def mask_classes(keep_2d: npt.NDArray[np.bool_], keep_3d: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """(patches,) 0 neither, 1 image token only, 2 point tokens only, 3 both."""
    return (keep_2d.astype(np.uint8) | keep_3d.astype(np.uint8) << 1).astype(np.uint8)


def draw_masks(
    replay: str | Path,
    out: str | Path,
    *,
    configurations: Sequence[str] = (),
    episode: str | None = None,
    trace: str | Path | None = None,
) -> Path:
    """Draw one episode of a saved replay: a row of camera images, then a row of masks per configuration.

    `configurations`: names, all by default; `episode`: id, the first by default; `trace`: where the replayed trace is,
    if it was moved. Writes a picture (PNG, SVG or PDF by the ending of `out`). Raises TraceError (one line) if
    something named is not there.
    """
    saved = SavedReplay(replay)
    target = Path(out)
    if target.suffix.lower() not in {".png", ".svg", ".pdf"}:
        raise TraceError(f"{target}: give a file that ends in .png, .svg or .pdf")
    if not target.parent.is_dir():
        raise TraceError(f"{target}: the folder {target.parent} does not exist; create it first")
    names = list(configurations) or list(saved.configurations)
    wanted = episode or saved.manifest["episodes"][0]
    recorded = Trace.open(trace or saved.trace_path)
    if recorded.digest != saved.manifest["trace_digest"]:
        raise TraceError(
            f"{recorded.path}: not the trace that was replayed (digest {recorded.digest[:12]}, the replay says "
            f"{saved.manifest['trace_digest'][:12]}); give that one with --trace, or replay this one"
        )
    recording = recorded.episode(wanted)
    chosen = [(name, _episode(saved, name, wanted)) for name in names]
    figure = _figure(recording, chosen, _columns(recording.info.steps))
    try:
        with mpl.rc_context({"svg.hashsalt": "tracekit"}):
            figure.savefig(target, dpi=150)
    except OSError as error:
        raise TraceError(f"{target}: cannot be written: {error.strerror}; give --out another path") from error
    return target


def _episode(saved: SavedReplay, name: str, wanted: str) -> Episode:
    for found, stored in saved.episodes(name):
        if found == wanted:
            return stored
    raise TraceError(f"{saved.path}: no episode {wanted!r}; it has: {', '.join(saved.manifest['episodes'])}")


def _columns(steps: int) -> list[int]:
    """At most MOST_COLUMNS steps, the first two (cold start, first pruned) and the last among them."""
    if steps <= MOST_COLUMNS:
        return list(range(steps))
    rest = np.linspace(1, steps - 1, MOST_COLUMNS - 1).round().astype(int)
    return [0, *map(int, rest)]


def _figure(recording: Episode, chosen: Sequence[tuple[str, Episode]], columns: Sequence[int]) -> Figure:
    view = recording.info.attributes["views"][0]
    images = recording.read(keys.image(view))
    rows = 1 + len(chosen)
    figure = Figure(figsize=(1.9 * len(columns) + 1.3, 2.02 * rows + 1.0), layout="constrained")
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for column, step in enumerate(columns):
        axes[0, column].imshow(images[step])
        axes[0, column].set_title(f"step {step + 1}", fontsize=10)
    axes[0, 0].set_ylabel(f"camera: {view}", fontsize=10)
    for row, (name, episode) in enumerate(chosen, start=1):
        classes, tokens = _classes(episode, recording), _kept_tokens(episode)
        for column, step in enumerate(columns):
            axis = axes[row, column]
            axis.imshow(images[step])
            overlay = np.array(COLOURS)[classes[step]].reshape(GRID, GRID, 4)
            axis.imshow(overlay, extent=(0, images.shape[2], images.shape[1], 0), interpolation="nearest")
            axis.set_xlabel(f"{tokens[step, 0]:.0f} 2D + {tokens[step, 1]:.0f} 3D tokens", fontsize=8)
        axes[row, 0].set_ylabel(name, fontsize=10, parse_math=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.suptitle(f"{recording.info.id}: “{recording.info.instruction}”", fontsize=12, parse_math=False)
    handles = [
        Patch(facecolor=colour, edgecolor="0.3", label=label) for label, colour in zip(CLASSES, COLOURS, strict=True)
    ]
    figure.legend(
        handles=handles[1:] + handles[:1],
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=10,
        title="patch keeps",
    )
    return figure


def _kept_tokens(episode: Episode) -> npt.NDArray[np.float64]:
    """(steps, 2) image and point tokens kept, means over the passes that the decision governs (all if it has none)."""
    kept, pruned_from = episode.read("decision/kept"), episode.read("decision/pruned_from")
    n_2d = episode.read("decision/mask_2d").shape[1]
    counts = np.stack([kept[:, :, :n_2d].sum(axis=2), kept[:, :, n_2d:].sum(axis=2)], axis=2)
    first = np.where(pruned_from < kept.shape[1], pruned_from, 0)
    return np.stack([counts[step, start:].mean(axis=0) for step, start in enumerate(first)])


def _classes(episode: Episode, recording: Episode) -> npt.NDArray[np.uint8]:
    """(steps, 256) mask classes of the front view; a rule about point tokens keeps a patch's points if any is kept."""
    keep_2d = episode.read("decision/mask_2d")[:, :PATCHES_PER_VIEW]
    if "decision/mask_3d" in episode:
        return mask_classes(keep_2d, episode.read("decision/mask_3d")[:, :PATCHES_PER_VIEW])
    kept: npt.NDArray[Any] = episode.read("decision/kept")[:, -1]
    n_2d = episode.read("decision/mask_2d").shape[1]
    patch = (
        recording.read(keys.POINT_PATCH)[:, -1] if keys.POINT_PATCH in recording else np.zeros((len(kept), 0), np.int32)
    )
    keep_3d = np.zeros(keep_2d.shape, bool)
    for step in range(len(kept)):
        own = patch[step][kept[step, n_2d:]] if patch.shape[1] else patch[step]
        keep_3d[step, own[(own >= 0) & (own < PATCHES_PER_VIEW)]] = True
    return mask_classes(keep_2d, keep_3d)
