"""Decision digests of many configurations at once: the bytes of `decision_digest`, laid out in one array."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tracekit.pruning.digest import DIGESTED
from tracekit.pruning.grid import DecisionGrid

__all__ = ["grid_digests"]


def grid_digests(grid: DecisionGrid, rows: Sequence[int], whole: Mapping[int, bytes], steps: int) -> list[str] | None:
    """`decision_digest` of configurations `rows` of `grid`, which all have masks over patches, or all over tokens.

    `whole`: step of the episode (0-based) -> bytes of the decision that stands there instead of the grid's. `steps`: of
    the episode; those of the grid are its last ones. None where the decisions' bytes differ in length.
    """
    config, taken = grid.configs[rows[0]], len(grid.pruned[0])
    arrays = {
        "keep_2d": grid.keep_2d,
        "keep_3d_patches": None if not grid.shape.n_3d or grid.of_tokens[rows[0]] else grid.keep_3d,
        "keep_3d_tokens": grid.keep_3d_tokens if grid.of_tokens[rows[0]] else None,
        "s1": grid.s1,
        "s2": grid.s2,
        "cluster": grid.cluster if "s2" in config.stages else None,
        "conflict": grid.conflict,
    }
    if grid.of_tokens[rows[0]] and not grid.pruned[list(rows)].all():
        return None  # steps of both forms
    unprojected = config.unprojected_points if config.modalities != "2d" else "keep"
    heads = [f"decision\0{int(flag)}\0{unprojected if flag else 'keep'}\0".encode() for flag in (False, True)]
    if len(heads[0]) != len(heads[1]) and len(np.unique(grid.pruned[list(rows)])) > 1:
        return None
    parts: list[tuple[bytes, npt.NDArray[np.uint8] | None]] = []
    for name in DIGESTED:
        array = arrays[name]
        if array is None:
            parts.append((f"{name}\0".encode(), None))
        else:
            parts.append((f"{name}\0{array.shape[-1]}\0".encode(), array[list(rows)].view(np.uint8)))
    flags = grid.pruned[list(rows)].astype(np.intp)
    lines = _lines([np.frombuffer(head, np.uint8) for head in heads], flags, parts)
    return [_digest(lines[index], whole, steps - taken, steps) for index in range(len(rows))]


def _lines(
    heads: list[npt.NDArray[np.uint8]],
    flags: npt.NDArray[np.intp],
    parts: Sequence[tuple[bytes, npt.NDArray[np.uint8] | None]],
) -> npt.NDArray[np.uint8]:
    """(configurations, steps, bytes): the bytes of every decision."""
    used = heads[int(flags.flat[0])]
    length = len(used) + sum(len(name) + (0 if array is None else array.shape[-1] + 1) for name, array in parts)
    lines = np.zeros((*flags.shape, length), np.uint8)
    if len(heads[0]) == len(heads[1]):
        lines[..., : len(used)] = np.stack(heads)[flags]
    else:
        lines[..., : len(used)] = used
    at = len(used)
    for name, array in parts:
        lines[..., at : at + len(name)] = np.frombuffer(name, np.uint8)
        at += len(name)
        if array is not None:
            lines[..., at : at + array.shape[-1]] = array
            at += array.shape[-1] + 1  # and a zero byte
    return lines


def _digest(lines: npt.NDArray[np.uint8], whole: Mapping[int, bytes], offset: int, steps: int) -> str:
    digest = hashlib.sha256()
    if not whole and not offset:
        digest.update(lines.data)
        return digest.hexdigest()
    for step in range(steps):
        digest.update(whole[step] if step in whole else lines[step - offset].data)
    return digest.hexdigest()
