"""Canonical JSON and digests: the names under which configurations, weights and results are filed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit.errors import TracekitError

__all__ = ["canonical_json", "digest_arrays", "digest_json"]

_SCALARS = frozenset({str, int, float, bool})


def canonical_json(obj: Any) -> bytes:
    """`obj` as UTF-8 JSON with sorted keys and no spaces: equal values give equal bytes.

    Tuples become lists and NumPy scalars plain numbers. Raises TracekitError for anything that JSON cannot say exactly
    (NaN, infinities, keys that are no strings, other types): a digest must not depend on how such a thing is rendered.
    """
    try:
        _refuse_other_keys(obj)
        text = json.dumps(
            obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_plain
        )
        return text.encode()
    except (TypeError, ValueError) as error:
        raise TracekitError(
            f"not expressible as JSON: {error}; use finite numbers, strings, lists and dicts with string keys"
        ) from error


def digest_json(obj: Any) -> str:
    """SHA-256, in hex, of `canonical_json(obj)`; raises TracekitError as that does."""
    return hashlib.sha256(canonical_json(obj)).hexdigest()


def digest_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """SHA-256, in hex, over the name, little-endian dtype, shape and bytes (C order) of every array, by sorted name.

    Memory layout and byte order do not matter, everything else does. Raises TracekitError for a dtype without a fixed
    binary form (objects, strings, records).
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        if array.dtype.kind not in "biufc":
            raise TracekitError(f"array {name!r} is {array.dtype}; only boolean and numeric arrays have a digest")
        little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
        digest.update(canonical_json([name, little.dtype.str.replace("|", "<"), list(little.shape)]))
        digest.update(b"\n")
        digest.update(little.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, np.bool_ | np.integer | np.floating):
        return value.item()
    raise TypeError(f"{type(value).__name__} {value!r}")


def _refuse_other_keys(obj: object) -> None:
    """`json` turns 1 and "1" into the same key; two different objects must not share a digest."""
    if type(obj) in _SCALARS:
        return
    if isinstance(obj, dict):
        for key, value in obj.items():
            if not isinstance(key, str):
                raise TypeError(f"key {key!r} is {type(key).__name__}")
            _refuse_other_keys(value)
    elif isinstance(obj, list | tuple):
        for value in obj:
            _refuse_other_keys(value)
