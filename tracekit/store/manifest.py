"""The manifest of a committed episode: what it is, what its arrays are, and every file with its checksum.

One sealed line in `journal/manifests/`, itself sealed by the journal line that commits the episode. Readers take
arrays and shapes from it; the `zarr.json` files say the same to other zarr readers and can be made anew from it.
The episode's group attributes repeat all that the files do not say themselves, so that either can be rebuilt from
the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from tracekit.digest import digest_json
from tracekit.errors import TraceError
from tracekit.store.checksums import Checksum, checksum_of, checksums_from_json, checksums_to_json
from tracekit.store.metadata import ArrayDocument, array_document, group_document
from tracekit.store.schema import ArraySpec, EpisodeInfo, check_id, check_key, rows_axis
from tracekit.store.sealed import seal, unseal
from tracekit.store.shards import CRC_BYTES
from tracekit.store.tables import stored_arrays, tables_of

__all__ = ["Manifest"]


@dataclass(frozen=True, slots=True)
class Manifest:
    """`schema`: key -> array, of the keys that are there. `rows`: zarr path -> steps (or samples).

    `chunks`: zarr path -> bytes of every chunk, 0 for an absent one, where they are not all the same. `files`: path in
    the episode's folder -> checksum. `dropped`: keys that `prune_store`, or `repair` as damaged, took away. `seq`:
    number of the journal line that commits it.
    """

    info: EpisodeInfo
    schema: Mapping[str, ArraySpec]
    rows: Mapping[str, int]
    chunks: Mapping[str, Sequence[int]]
    files: Mapping[str, Checksum]
    dropped: tuple[str, ...] = ()
    seq: int = 0

    @property
    def legacy(self) -> bool:
        """Whether some file has no SHA-256: the episode was committed by version 1.0."""
        return any(checksum.sha256 is None for checksum in self.files.values())

    def places(self) -> dict[str, tuple[str, int | None]]:
        """Key -> (zarr path, column of a table or None)."""
        columns = {key: (name, i) for name, keys in tables_of(self.schema).items() for i, key in enumerate(keys)}
        return {key: columns.get(key, (key, None)) for key in self.schema}

    def arrays(self) -> dict[str, ArraySpec]:
        """Zarr path -> specification of every stored array."""
        return stored_arrays(self.schema)

    def sizes(self, name: str) -> Sequence[int]:
        """Bytes of every chunk of the array at zarr path `name`, 0 for an absent one."""
        row = self.arrays()[name].row_nbytes
        return self.chunks.get(name, [row + CRC_BYTES if row else 0] * self.rows[name])

    def documents(self) -> dict[str, bytes]:
        """Path in the episode's folder -> contents of every `zarr.json`."""
        tables = tables_of(self.schema)
        found: dict[str, bytes] = {}
        for name, spec in self.arrays().items():
            columns = tuple((key, self.schema[key]) for key in tables.get(name, ()))
            for parent in Path(name).parents:
                found[str(parent / "zarr.json")] = group_document({})
            found[f"{name}/zarr.json"] = array_document(ArrayDocument(spec, self.rows[name], rows_axis(name), columns))
        return {**found, "zarr.json": group_document(self._own_attributes())}

    def seal(self) -> bytes:
        """The manifest as its file holds it."""
        chunks = {name: list(sizes) for name, sizes in self.chunks.items()}
        own = {"info": self.info.to_json(), "chunks": chunks, "seq": self.seq}
        return seal({**own, **checksums_to_json(self.files), **self._contents()})

    def with_documents(self) -> Manifest:
        """This manifest with the checksums of its `documents` among `files`, and the bytes of all of them."""
        shards = {path: about for path, about in self.files.items() if Path(path).name != "zarr.json"}
        files = {**shards, **{path: checksum_of(data) for path, data in self.documents().items()}}
        if self.legacy:  # one episode, one kind of checksum
            files = {path: replace(checksum, sha256=None) for path, checksum in files.items()}
        nbytes = sum(checksum.nbytes for checksum in files.values())
        return replace(self, info=replace(self.info, nbytes=nbytes), files=files)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `seal`, after unsealing; also takes the attributes of an episode's group, which say less.

        Raises TraceError for a name that would lead out of the episode's folder, and AttributeError, KeyError,
        TypeError or ValueError for what is no manifest.
        """
        found = cls(
            EpisodeInfo.from_json(data.get("info", data)),
            {key: ArraySpec.from_json(spec) for key, spec in data["arrays"]},
            data["rows"],
            data.get("chunks", {}),
            checksums_from_json(data),
            tuple(data["dropped"]),
            data.get("seq", 0),
        )
        check_id(found.info.id)
        for key in (*found.schema, *found.rows, *found.chunks, *found.dropped):
            check_key(key)
        for path in found.files:
            check_key(path.replace("zarr.json", "metadata"))
        return found

    @classmethod
    def unsealed(cls, data: bytes) -> Self | None:
        """The manifest whose file holds `data`; None if that is damaged, or not what a store writes."""
        said = unseal(data)
        try:
            return None if said is None else cls.from_json(said)
        except (AttributeError, KeyError, TypeError, ValueError, TraceError):
            return None

    @staticmethod
    def checksum_in(record: Mapping[str, Any]) -> Checksum:
        """Of a manifest's file, as the journal line `record` has it."""
        about = record["manifest"]
        return Checksum(about["size"], about["crc32c"], about.get("sha256"))

    def _own_attributes(self) -> dict[str, Any]:
        """Those of the episode's group: with the SHA-256 of its shards and their own digest, they need no journal."""
        about = {name: value for name, value in self.info.to_json().items() if name != "nbytes"}
        said = {**about, **self._contents()}
        if self.legacy:
            return said
        said["sha256"] = {p: about.sha256 for p, about in self.files.items() if Path(p).name != "zarr.json"}
        return {**said, "digest": digest_json(said)}

    def _contents(self) -> dict[str, Any]:
        arrays = [[key, spec.to_json()] for key, spec in self.schema.items()]
        return {"arrays": arrays, "rows": dict(self.rows), "dropped": list(self.dropped)}
