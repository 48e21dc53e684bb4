"""Scalars that every step has share one table per dtype: dozens of tiny arrays would cost a file each.

The table `scalars/<dtype>` is an array of shape (steps, columns); its attribute `columns` names the key, unit and
attributes of each column. Readers never see it: a key is read as if it were an array of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from tracekit.store.schema import ArraySpec, stream_of

__all__ = ["stored_arrays", "table_spec", "tables_of"]


def tables_of(schema: Mapping[str, ArraySpec]) -> dict[str, tuple[str, ...]]:
    """Table name -> the keys of its columns, in schema order."""
    tables: dict[str, tuple[str, ...]] = {}
    for key, spec in schema.items():
        if spec.shape == () and not spec.optional and stream_of(key) is None:
            name = f"scalars/{spec.dtype}"
            tables[name] = (*tables.get(name, ()), key)
    return tables


def table_spec(dtype: str, columns: int) -> ArraySpec:
    """The array that holds a table."""
    return ArraySpec(dtype, (columns,), ("column",))


def stored_arrays(schema: Mapping[str, ArraySpec]) -> dict[str, ArraySpec]:
    """Zarr path -> specification of every array that a schema is stored as: own arrays first, then the tables."""
    tables = tables_of(schema)
    in_tables = {key for columns in tables.values() for key in columns}
    own = {key: spec for key, spec in schema.items() if key not in in_tables}
    return own | {name: table_spec(schema[columns[0]].dtype, len(columns)) for name, columns in tables.items()}
