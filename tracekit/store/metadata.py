"""zarr v3 metadata documents of the store's arrays and groups, as bytes.

Every array is one shard (the file `c.0.0…` beside its `zarr.json`) of one chunk per step, because a shard can be
appended to step by step and closed with its index: no chunk is ever written twice, and a step costs one small write
per array instead of a file. Every chunk and the shard's index end in a CRC32C. Scalars that every step has are the
columns of one table per dtype, `scalars/<dtype>`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tracekit.digest import canonical_json
from tracekit.store.schema import CODECS, ArraySpec

__all__ = ["ArrayDocument", "array_document", "group_document", "shard_name"]


@dataclass(frozen=True, slots=True)
class ArrayDocument:
    """One zarr array of an episode: its specification, its rows, and the keys of its columns if it is a table."""

    spec: ArraySpec
    rows: int
    rows_axis: str = "step"
    columns: tuple[tuple[str, ArraySpec], ...] = ()


def shard_name(spec: ArraySpec) -> str:
    """File name of the one shard: chunk key (0, 0, …) with `.` between the indices."""
    return ".".join(["c", *["0"] * (1 + len(spec.shape))])


def group_document(attributes: Mapping[str, Any]) -> bytes:
    """The `zarr.json` of a group."""
    return canonical_json({"attributes": dict(attributes), "node_type": "group", "zarr_format": 3})


def array_document(document: ArrayDocument) -> bytes:
    """The `zarr.json` of an array; raises TracekitError if its attributes are not plain values."""
    spec = document.spec
    endian = {"name": "bytes", **({"configuration": {"endian": "little"}} if spec.storage.itemsize > 1 else {})}
    row = [max(1, size) for size in spec.shape]
    codecs: list[dict[str, Any]] = [endian]
    if spec.codec is not None:
        codecs.append({"name": "zstd", "configuration": {"level": CODECS[spec.codec], "checksum": False}})
    sharding = {
        "chunk_shape": [1, *row],
        "codecs": [*codecs, {"name": "crc32c"}],
        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "index_location": "end",
    }
    return canonical_json(
        {
            "attributes": _attributes(document),
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [max(1, document.rows), *row]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "data_type": spec.storage.name,
            "dimension_names": [document.rows_axis, *spec.axes],
            "fill_value": "NaN" if isinstance(spec.fill, float) else spec.fill,
            "node_type": "array",
            "shape": [document.rows, *spec.shape],
            "zarr_format": 3,
        }
    )


def _attributes(document: ArrayDocument) -> dict[str, Any]:
    spec = document.spec
    attributes: dict[str, Any] = {**spec.attributes, "unit": spec.unit, "optional": spec.optional}
    if spec.dtype == "bfloat16":
        attributes["dtype"] = spec.dtype
    if document.columns:
        attributes["columns"] = [
            {"key": key, "unit": column.unit, "attributes": dict(column.attributes)} for key, column in document.columns
        ]
    return attributes
