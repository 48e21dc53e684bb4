"""Creating a trace, or continuing one: the single writer of a store."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tracekit.digest import canonical_json
from tracekit.errors import TraceError
from tracekit.store import files, lock
from tracekit.store.checksums import checksum_of, checksums_to_json
from tracekit.store.committing import finish_moves
from tracekit.store.episode_writer import EpisodeWriter
from tracekit.store.identity import TRACE_FORMAT, VERSION, check_identity, open_journal
from tracekit.store.journal import Commits, read_journal
from tracekit.store.metadata import ArrayDocument, array_document, group_document
from tracekit.store.places import (
    commits_file,
    episodes_folder,
    manifests_folder,
    refuse_inside_store,
    running_folder,
    steps_log,
)
from tracekit.store.schema import ArraySpec, EpisodeInfo, check_new_id, check_schema
from tracekit.store.sealed import seal

__all__ = ["TraceWriter", "head_record", "root_files"]


class TraceWriter:
    """The one writer of a store; made by `create` or `append`, released by `close` or leaving a `with` block.

    It belongs to the process that made it: in a forked child it refuses everything, and closing it does nothing.
    """

    def __init__(self, root: Path, attributes: Mapping[str, Any], lock_held: int, commits: Commits) -> None:
        """Use `create` or `append`."""
        self.path = root
        self.attributes = attributes
        self._lock = lock_held
        self._commits = commits
        self._running: list[EpisodeWriter] = []
        self._process = os.getpid()

    @classmethod
    def create(cls, path: str | Path, attributes: Mapping[str, Any], format: str = TRACE_FORMAT) -> Self:  # noqa: A002
        """A new, empty store at `path` with these root attributes (plain values).

        It appears at `path` complete or not at all. Raises TraceError if `path` exists or cannot be made, TracekitError
        if an attribute is no plain value.
        """
        root = Path(path)
        if root.exists():
            raise TraceError(f"{root} exists already; choose another path, or append to it if it is a trace")
        refuse_inside_store(root)
        clash = {"format", "version"} & attributes.keys()
        if clash:
            raise TraceError(f"root attributes may not be called {', '.join(sorted(clash))}; rename them")
        contents = root_files(attributes, format)
        head = head_record(attributes, format)
        new = root.with_name(f".{root.name}.{os.getpid()}.new")
        try:
            root.parent.mkdir(parents=True, exist_ok=True)
            held = _lay_out(new, contents, seal({**head, "seq": 0}))
            files.rename(new, root)
            files.sync_folder(root.parent)
        except OSError as error:
            files.remove_tree(new)
            raise TraceError(f"{root}: cannot create a trace there: {error.strerror}; choose another path") from error
        return cls(root, attributes, held, Commits(root, read_journal(root)))

    @classmethod
    def append(
        cls,
        path: str | Path,
        attributes: Mapping[str, Any],
        match: Sequence[str] = (),
        format: str = TRACE_FORMAT,  # noqa: A002 - it is what the store's attributes call it
    ) -> Self:
        """Continue the store at `path`, if its attributes at the dotted keys `match` are those of `attributes`.

        Raises TraceError for a path that is no store of this format, a damaged journal, another writer, or, naming the
        first of the keys, attributes that differ; and wherever the disk refuses.
        """
        root = Path(path)
        try:
            head = check_identity(root, format, writing=True)
            _check_match(root, head["attributes"], attributes, match)
            held = lock.acquire(root)
            try:
                journal = open_journal(root, format)
                for folder in (running_folder(root), manifests_folder(root)):  # some tools do not copy empty folders
                    files.make_folder(folder)
                finish_moves(root, journal)
                return cls(root, head["attributes"], held, Commits(root, journal))
            except BaseException:
                lock.release(held)
                raise
        except OSError as error:
            raise TraceError(
                f"{error.filename or root}: cannot be continued: {error.strerror}; check the disk and its rights, or "
                "run `tracekit repair` on the trace"
            ) from error

    @property
    def episode_ids(self) -> frozenset[str]:
        """Ids of the committed episodes."""
        return frozenset(self._commits.episodes)

    def episode(self, info: EpisodeInfo, schema: Mapping[str, ArraySpec]) -> EpisodeWriter:
        """Start an episode that stores `schema` (key -> array); use it as a `with` block.

        Raises TraceError, with nothing written, as `check_new`, or if a name in `schema` cannot be stored.
        """
        self.check_new(info)
        check_schema(schema)
        canonical_json([spec.to_json() for spec in schema.values()])
        try:
            episode = EpisodeWriter(self.path, self._commits, info, schema)
        except OSError as error:
            raise TraceError(
                f"{self.path}: cannot start episode {info.id!r}: {error.strerror}; check the disk"
            ) from error
        self._running = [*(other for other in self._running if not other.closed), episode]
        return episode

    def check_new(self, info: EpisodeInfo) -> None:
        """Raise TraceError unless `episode` would start `info`: its id is free and can be stored, the writer is open.

        Raises TracekitError if an attribute is no plain value.
        """
        if self._process != os.getpid():
            raise TraceError(
                f"{self.path}: this writer belongs to process {self._process}, which forked this one; make a trace here"
            )
        if self._lock < 0:
            raise TraceError(f"{self.path}: this writer is closed; make a new one to record more")
        check_new_id(info.id)
        if info.id in self._commits.episodes:
            raise TraceError(f"{self.path}: episode {info.id!r} is there already; give the new one another id")
        if steps_log(self.path, info.id).exists() or (running_folder(self.path) / info.id).exists():
            raise TraceError(
                f"{self.path}: episode {info.id!r} was started before and not finished; "
                "run `tracekit repair` on the trace, or give the new one another id"
            )
        canonical_json(info.to_json())

    def close(self) -> None:
        """Let the next writer in. Closing twice is fine.

        An episode that is still open takes no more and stays hidden, as if the process had ended: `repair` keeps it.
        """
        if self._lock >= 0 and self._process == os.getpid():
            for episode in self._running:
                episode.leave()
            self._commits.close()
            lock.release(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def head_record(attributes: Mapping[str, Any], name: str, version: str = VERSION) -> dict[str, Any]:
    """The first line of the journal of a store of format `name`: what it is, and its root files' checksums."""
    listed = {path: checksum_of(data) for path, data in root_files(attributes, name, version).items()}
    about = {"kind": "trace", "format": name, "version": version, "attributes": attributes}
    return {**about, **checksums_to_json(listed)}


def root_files(attributes: Mapping[str, Any], name: str, version: str = VERSION) -> dict[str, bytes]:
    """Path -> contents of the metadata that a store has before its first episode."""
    about = "Commit journal, manifests and running episodes of the trace store; not an array to read."
    journal = ArrayDocument(ArraySpec("uint8", attributes={"description": about}), 0)
    return {
        "zarr.json": group_document({**attributes, "format": name, "version": version}),
        "episodes/zarr.json": group_document({}),
        "journal/zarr.json": array_document(journal),
    }


def _lay_out(root: Path, contents: Mapping[str, bytes], head: bytes) -> int:
    """Write an empty store to the folder `root`, all of it on the disk; returns the writer's lock."""
    files.remove_tree(root)
    for folder in (root, episodes_folder(root), root / "journal", running_folder(root), manifests_folder(root)):
        files.make_folder(folder)
    for path, data in {**{root / name: data for name, data in contents.items()}, commits_file(root): head}.items():
        files.replace(path, data)
    return lock.acquire(root)


def _check_match(root: Path, stored: Mapping[str, Any], given: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Refuse (TraceError) attributes that differ at one of the dotted `keys`."""
    for key in keys:
        old, new = _look_up(stored, key), _look_up(given, key)
        if canonical_json(old) != canonical_json(new):
            name, old, new = _difference(key, old, new)
            raise TraceError(
                f"{root}: {name} is {_brief(old)} in the trace but {_brief(new)} now; "
                "record into a new trace, or restore that setting"
            )


def _look_up(attributes: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        attributes = attributes.get(part) if isinstance(attributes, Mapping) else None
    return attributes


def _difference(key: str, stored: Any, given: Any) -> tuple[str, Any, Any]:
    """Dotted key and both values of the first entry in which two values differ."""
    while isinstance(stored, Mapping) and isinstance(given, Mapping):
        names = sorted({*stored, *given})
        name = next(name for name in names if canonical_json(stored.get(name)) != canonical_json(given.get(name)))
        key, stored, given = f"{key}.{name}", stored.get(name), given.get(name)
    return key, stored, given


def _brief(value: Any) -> str:
    text = canonical_json(value).decode()
    return text if len(text) <= 60 else f"{text[:57]}..."
