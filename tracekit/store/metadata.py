"""zarr v3 metadata documents of the store's arrays and groups, as bytes, and back.

Every array is one shard (the file `c.0.0…` beside its `zarr.json`) of one chunk per step, because a shard can be
appended to step by step and closed with its index: no chunk is ever written twice, and a step costs one small write
per array instead of a file. Every chunk and the shard's index end in a CRC32C. Scalars that every step has are the
columns of one table per dtype, `scalars/<dtype>`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracekit.digest import canonical_json
from tracekit.errors import TraceError
from tracekit.store.schema import CODECS, ArraySpec

__all__ = ["ArrayDocument", "array_document", "group_document", "parse_array", "shard_name"]


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


def parse_array(data: bytes, where: str) -> ArrayDocument:
    """Inverse of `array_document`; raises TraceError (naming `where`) for an array the store did not write."""
    document = json.loads(data)
    attributes = dict(document["attributes"])
    columns = attributes.pop("columns", ())
    (sharding,) = document["codecs"]
    rows, *shape = document["shape"]
    rows_axis, *axes = document["dimension_names"]
    spec = ArraySpec(
        dtype=attributes.pop("dtype", document["data_type"]),
        shape=tuple(shape),
        axes=tuple(axes),
        unit=attributes.pop("unit"),
        optional=attributes.pop("optional"),
        codec=_codec(sharding["configuration"]["codecs"], where),
        attributes=attributes,
    )
    return ArrayDocument(spec, rows, rows_axis, tuple(_column(spec, column) for column in columns))


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


def _column(table: ArraySpec, column: Mapping[str, Any]) -> tuple[str, ArraySpec]:
    return column["key"], ArraySpec(table.dtype, unit=column["unit"], attributes=column["attributes"])


def _codec(codecs: Sequence[Mapping[str, Any]], where: str) -> str | None:
    names = [codec["name"] for codec in codecs]
    if names == ["bytes", "crc32c"]:
        return None
    if names == ["bytes", "zstd", "crc32c"]:
        level = codecs[1]["configuration"]["level"]
        return next((name for name, value in CODECS.items() if value == level), "zstd")
    raise TraceError(f"{where}: codecs {names} are not known to this version; update tracekit to read it")
