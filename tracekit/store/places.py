"""Where things stand inside a store.

    zarr.json                       the root group; its attributes are those of the trace
    episodes/<id>/<key>/            committed episodes: one zarr array per key, one shard file per array
    journal/commits.jsonl           the commit journal: what exists, in committed order
    journal/manifests/<id>@<n>.json arrays and files of an episode, with sizes and CRCs
    journal/running/<id>/           an episode that is being written; <id>.jsonl beside it logs its steps
    journal/set_aside/              damaged data that `repair` took out of the way
    journal/lock                    held by the one writer

The folder `journal` is an empty zarr array to zarr, so that plain zarr lists the episodes and nothing else.
"""

from __future__ import annotations

from pathlib import Path

from tracekit.errors import TraceError

__all__ = [
    "commits_file",
    "episodes_folder",
    "lock_file",
    "manifest_file",
    "manifests_folder",
    "refuse_inside_store",
    "running_episodes",
    "running_folder",
    "set_aside_folder",
    "steps_log",
]


def commits_file(root: Path) -> Path:
    """The commit journal."""
    return root / "journal" / "commits.jsonl"


def lock_file(root: Path) -> Path:
    """The file whose lock makes a process the writer."""
    return root / "journal" / "lock"


def manifest_file(root: Path, name: str) -> Path:
    """The manifest `<id>@<n>.json`, n being the journal line that commits it."""
    return manifests_folder(root) / name


def manifests_folder(root: Path) -> Path:
    """Where the manifests are."""
    return root / "journal" / "manifests"


def episodes_folder(root: Path) -> Path:
    """Where the committed episodes are."""
    return root / "episodes"


def running_folder(root: Path) -> Path:
    """Where episodes are until they are committed."""
    return root / "journal" / "running"


def running_episodes(root: Path) -> set[str]:
    """Ids of the episodes of which a folder, or what stands in its place, or a step log is in the running folder."""
    entries = running_folder(root).glob("*")
    return {entry.stem if entry.suffix == ".jsonl" and entry.is_file() else entry.name for entry in entries}


def steps_log(root: Path, episode: str) -> Path:
    """The log of the steps of a running episode."""
    return running_folder(root) / f"{episode}.jsonl"


def set_aside_folder(root: Path) -> Path:
    """Where `repair` puts what it takes out of the way."""
    return root / "journal" / "set_aside"


def refuse_inside_store(path: Path) -> None:
    """Raise TraceError if `path` lies inside a zarr group: a store holds what its own writer put there."""
    for parent in path.absolute().parents:
        if (parent / "zarr.json").exists():
            raise TraceError(f"{path}: lies inside a store, {parent}; give --out a path outside")
