"""What is stored: the description of one array and of one episode, and the names they may have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit.errors import TraceError

__all__ = [
    "CODECS",
    "STREAMS",
    "ArraySpec",
    "EpisodeInfo",
    "check_id",
    "check_key",
    "check_new_id",
    "check_schema",
    "rows_axis",
    "stream_of",
]

CODECS: Mapping[str, int] = {"zstd": 3, "zstd1": 1}
"""Codec name -> Zstandard level, as measured on recordings: 1 for images, depth and segmentation (3 is slower and no
smaller), 3 for point clouds. Attention rows, norms and hidden states shrink by an eighth at best: leave them raw."""

STREAMS = "streams/"
"""Keys below it hold what runs at its own rate: `streams/<name>/time_ns` and `streams/<name>/value`."""

_DTYPES = frozenset(
    {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
    | {"float16", "float32", "float64", "bfloat16"}
)
_RESERVED_ATTRIBUTES = frozenset({"unit", "dtype", "optional", "columns"})
_ID = re.compile(r"[A-Za-z0-9._-]{1,200}")
_NUMBER_KINDS = {bool: "b", int: "iuf", float: "f"}
_LARGEST_ROW_BYTES = 2**31 - 4096


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array of an episode. Shape and axes are those of ONE step: the leading axis `step` is understood.

    `dtype`: a NumPy name or `bfloat16` (stored, written and read as its uint16 bits). `unit`: of every entry, "1" for
    none. `optional`: steps may lack it. `codec`: None for raw bytes, or a name in `CODECS`. `attributes`: plain values
    kept beside the array. Raises TraceError if the parts do not fit together.
    """

    dtype: str
    shape: tuple[int, ...] = ()
    axes: tuple[str, ...] = ()
    unit: str = "1"
    optional: bool = False
    codec: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise TraceError(f"array dtype {self.dtype!r} cannot be stored; use one of: {', '.join(sorted(_DTYPES))}")
        if len(self.shape) != len(self.axes):
            raise TraceError(f"array of shape {self.shape} has axes {self.axes}; name every axis but the step")
        if any(size < 0 for size in self.shape) or self.row_nbytes > _LARGEST_ROW_BYTES:
            raise TraceError(f"array shape {self.shape} is negative or above 2 GB a step; split it into several arrays")
        if self.codec is not None and self.codec not in CODECS:
            raise TraceError(f"codec {self.codec!r} is unknown; use None or one of: {', '.join(sorted(CODECS))}")
        clash = _RESERVED_ATTRIBUTES & self.attributes.keys()
        if clash:
            raise TraceError(f"array attributes may not be called {', '.join(sorted(clash))}; rename them")

    @property
    def storage(self) -> np.dtype[Any]:
        """Little-endian NumPy dtype of the stored numbers (uint16 for bfloat16)."""
        return np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype).newbyteorder("<")

    @property
    def row_nbytes(self) -> int:
        """Bytes of one step, uncompressed."""
        return prod(self.shape) * self.storage.itemsize

    @property
    def fill(self) -> float:
        """What stands for an absent step: NaN for floats, else 0 or False."""
        if self.dtype == "bfloat16":
            return 0x7FC0
        if self.dtype == "bool":
            return False
        return float("nan") if self.dtype.startswith("float") else 0

    def to_json(self) -> dict[str, Any]:
        """Plain values, one per field."""
        return {**asdict(self), "attributes": dict(self.attributes)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ArraySpec:
        """Inverse of `to_json`; fields of a newer minor version are passed over."""
        known = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
        return cls(**{**known, "shape": tuple(data["shape"]), "axes": tuple(data["axes"])})

    def row(self, value: npt.ArrayLike) -> npt.NDArray[Any] | None:
        """`value` as one C-ordered little-endian row of this array, or None if it does not fit exactly.

        Python numbers are taken for scalars where they lose no more than float rounding; arrays must have the dtype.
        """
        if type(value) in _NUMBER_KINDS:
            return self._row_of_number(value)
        array = np.asarray(value)
        if array.shape != self.shape or array.dtype.newbyteorder("<") != self.storage:
            return None
        return array.astype(self.storage, order="C", copy=False)

    def _row_of_number(self, value: Any) -> npt.NDArray[Any] | None:
        if self.shape or self.dtype == "bfloat16" or self.storage.kind not in _NUMBER_KINDS[type(value)]:
            return None
        try:
            return np.array(value, self.storage)
        except OverflowError:
            return None


@dataclass(frozen=True, slots=True)
class EpisodeInfo:
    """Who an episode is. The caller gives the first six fields, the store the others when the episode is committed.

    `id`: 1 to 200 letters, digits, `.`, `_`, `-`. `seed`: of the task, None without one. `uid`: 64-bit identity that
    random draws are keyed by. `steps`: number of control steps. `success`: None where nobody judged it. `truncated`:
    True for an episode that was cut off: by an exception while it was recorded, or by a crash and then repaired.
    `nbytes`: size on disk.
    """

    id: str
    task: str = ""
    instruction: str = ""
    seed: int | None = None
    uid: int = 0
    attributes: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 0
    success: bool | None = None
    truncated: bool = False
    nbytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values, one per field."""
        return {**asdict(self), "attributes": dict(self.attributes)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EpisodeInfo:
        """Inverse of `to_json`; fields of a newer minor version are passed over."""
        return cls(**{name: data[name] for name in _INFO_FIELDS if name in data})


_INFO_FIELDS = tuple(EpisodeInfo.__dataclass_fields__)


def check_id(name: str) -> None:
    """Refuse (TraceError) an episode id or key segment that is no portable, unreserved folder name."""
    if (
        not isinstance(name, str)
        or not _ID.fullmatch(name)
        or name in {".", "..", "zarr.json"}
        or name.startswith("__")
    ):
        raise TraceError(f"{name!r} cannot be a name in a trace; use 1 to 200 of the characters A-Z a-z 0-9 . _ -")


def check_key(key: str) -> None:
    """Refuse (TraceError) a key that is no path of plain names."""
    for segment in key.split("/"):
        check_id(segment)


def check_new_id(name: str) -> None:
    """Refuse (TraceError) what `check_id` does, and an id that would be taken for the step log of another episode."""
    check_id(name)
    if name.endswith(".jsonl"):
        raise TraceError(f"{name!r} cannot be the id of an episode: step logs end in .jsonl; leave the ending out")


def check_schema(schema: Mapping[str, ArraySpec]) -> None:
    """Refuse (TraceError) keys that are no paths of plain names, that nest in each other, or streams without a pair."""
    taken: set[str] = set()
    for key in schema:
        check_key(key)
        if key.split("/")[0] == "scalars":
            raise TraceError(f"key {key!r}: `scalars/` is where the store keeps its tables; choose another name")
        taken.update(_parents(key))
    for key in sorted(taken & schema.keys()):
        raise TraceError(f"key {key!r} is an array and also the folder of another array; rename one of them")
    for key, spec in schema.items():
        if key.startswith(STREAMS):
            _check_stream(key, spec, schema)


def rows_axis(key: str) -> str:
    """Name of the leading axis of `key`: `step`, or `sample` for what runs at its own rate."""
    return "sample" if key.startswith(STREAMS) else "step"


def stream_of(key: str) -> str | None:
    """Name of the stream that `key` belongs to, None for an array of steps."""
    return key.split("/")[1] if key.startswith(STREAMS) else None


def _parents(key: str) -> Iterable[str]:
    parts = key.split("/")
    return ("/".join(parts[:end]) for end in range(1, len(parts)))


def _check_stream(key: str, spec: ArraySpec, schema: Mapping[str, ArraySpec]) -> None:
    parts = key.split("/")
    if len(parts) != 3 or parts[2] not in {"time_ns", "value"}:
        raise TraceError(f"key {key!r}: a stream is exactly streams/<name>/time_ns and streams/<name>/value")
    missing = {"time_ns", "value"} - {other.rsplit("/", 1)[1] for other in schema if stream_of(other) == parts[1]}
    if missing:
        raise TraceError(f"stream {parts[1]!r} lacks {missing.pop()!r}; give both time_ns and value")
    if spec.codec is not None or spec.optional:
        raise TraceError(f"key {key!r}: streams are stored raw and are never optional; leave codec and optional out")
    if parts[2] == "time_ns" and (spec.dtype, spec.shape) != ("int64", ()):
        raise TraceError(f"key {key!r} is {spec.dtype} of shape {spec.shape}; time stamps are int64 scalars")
