"""The masks over the camera images, step by step: which patches keep image token, point tokens, both, or neither."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from replay import SavedReplay
from reports.stages import StageMasks, has_stages, masks_by_stage
from tracekit import keys
from tracekit.config import Configuration
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
    stages: bool | None = None,
) -> Path:
    """Draw one episode of a saved replay: a row of camera images, then a row of masks per configuration.

    With `stages` a tri-stage configuration has a row with stage 1 alone, one with stages 1 and 2, and one with all; by
    default that is so if it is the only one that is drawn. `configurations`: names, all by default; `episode`: id, the
    first by default; `trace`: where the replayed trace is, if it was moved. Writes a picture (PNG, SVG or PDF by the
    ending of `out`). Raises TraceError (one line) if something named is not there, or has no stages to show.
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
    rows = [row for name in names for row in _rows(saved, name, wanted, recording, stages, alone=len(names) == 1)]
    staged = f", {names[0]}" if len(names) == 1 and rows[0].label != names[0] else ""
    title = f"{recording.info.id}{staged}: “{recording.info.instruction}”"
    figure = _figure(recording, title, rows, _columns(recording.info.steps))
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


class _Row(NamedTuple):
    """One row of the picture: mask classes (steps, 256) of the front view, and image and point tokens (steps, 2)."""

    label: str
    classes: npt.NDArray[np.uint8]
    tokens: npt.NDArray[np.float64]


def _rows(
    saved: SavedReplay, name: str, wanted: str, recording: Episode, stages: bool | None, *, alone: bool
) -> list[_Row]:
    stored = _episode(saved, name, wanted)
    config = Configuration.from_table(saved.manifest["tables"][name], str(saved.path))
    last = 0 if config.reuse.fps == "pinned" else -1  # the pass whose points the last pass has
    if stages or (stages is None and alone and has_stages(config, stored)):
        return [
            _Row(row.label if alone else f"{name}: {row.label}", _stage_classes(row, recording, last), row.tokens)
            for row in masks_by_stage(config, stored, recording)
        ]
    return [_Row(name, _classes(stored, recording, last), _kept_tokens(stored))]


def _columns(steps: int) -> list[int]:
    """At most MOST_COLUMNS steps, the first two (cold start, first pruned) and the last among them."""
    if steps <= MOST_COLUMNS:
        return list(range(steps))
    rest = np.linspace(1, steps - 1, MOST_COLUMNS - 1).round().astype(int)
    return [0, *map(int, rest)]


def _figure(recording: Episode, title: str, chosen: Sequence[_Row], columns: Sequence[int]) -> Figure:
    view = recording.info.attributes["views"][0]
    images = recording.read(keys.image(view))
    rows = 1 + len(chosen)
    figure = Figure(figsize=(1.9 * len(columns) + 1.3, 2.02 * rows + 1.0), layout="constrained")
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for column, step in enumerate(columns):
        axes[0, column].imshow(images[step])
        axes[0, column].set_title(f"step {step + 1}", fontsize=10)
    axes[0, 0].set_ylabel(f"camera: {view}", fontsize=10)
    for row, (name, classes, tokens) in enumerate(chosen, start=1):
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
    figure.suptitle(title, fontsize=12, parse_math=False)
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


def _classes(episode: Episode, recording: Episode, last: int = -1) -> npt.NDArray[np.uint8]:
    """(steps, 256) mask classes of the front view in the last pass, whatever the rule; 3D: a point token is kept."""
    keep_2d = episode.read("decision/mask_2d")
    of_points = _patches_of(episode.read("decision/kept")[:, -1, keep_2d.shape[1] :], recording, last)
    return mask_classes(keep_2d[:, :PATCHES_PER_VIEW], of_points)


def _stage_classes(row: StageMasks, recording: Episode, last: int) -> npt.NDArray[np.uint8]:
    """As `_classes`, of what a set of stages decides."""
    keep_2d = np.stack([decision.keep_2d[:PATCHES_PER_VIEW] for decision in row.decisions])
    return mask_classes(keep_2d, _patches_of(row.kept_3d, recording, last))


def _patches_of(kept: npt.NDArray[np.bool_], recording: Episode, last: int) -> npt.NDArray[np.bool_]:
    """(steps, 256) front patches in which a point token of the last pass, with the points of `last`, is `kept`."""
    keep_3d = np.zeros((len(kept), PATCHES_PER_VIEW), bool)
    if keys.POINT_PATCH in recording:
        for step, patch in enumerate(recording.read(keys.POINT_PATCH)[:, last]):
            own = patch[kept[step]]
            keep_3d[step, own[(own >= 0) & (own < PATCHES_PER_VIEW)]] = True
    return keep_3d
