"""A disk that remembers what was synced: the folder as a power cut at any moment may leave it.

File contents are safe once the file was synced, names once their folder was. Everything later may be there, missing,
torn or out of order, each on its own; a rename happens or does not. Harsher than any one file system.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tracekit.store import files

SECTOR = 512

Tree = dict[str, Any]


class Disk:
    """Records the store's file operations below `base` while they run, and replays them into another folder."""

    def __init__(self, base: Path, patch: pytest.MonkeyPatch) -> None:
        self.base = base
        self.log: list[tuple[Any, ...]] = []
        self.open: dict[int, int] = {}
        self.inodes: dict[Path, int] = {}
        self.sizes: dict[int, int] = {}
        for name in ("create", "append_to", "write", "sync", "close", "truncate", "make_folder", "sync_folder"):
            patch.setattr(files, name, self._wrap(getattr(files, name), getattr(self, f"_{name}")))
        for name in ("rename", "remove_file", "remove_tree"):
            patch.setattr(files, name, self._wrap(getattr(files, name), getattr(self, f"_{name}")))

    def mark(self, what: object) -> None:
        """Note a moment, such as the return of a commit."""
        self.log.append(("mark", what))

    def moments(self) -> list[int]:
        """Every point just before and just after a sync: between them, operations only add up."""
        syncs = [i for i, entry in enumerate(self.log) if entry[0] in {"sync", "sync_folder"}]
        return [i + after for i in syncs for after in (0, 1)]

    def marks(self, moment: int) -> list[object]:
        return [entry[1] for entry in self.log[:moment] if entry[0] == "mark"]

    def crash(self, moment: int, target: Path, draw: random.Random) -> None:
        """Write into `target` what may be left after the first `moment` operations."""
        safe_file, safe_folder = {}, {}
        for i, entry in enumerate(self.log[:moment]):
            if entry[0] == "sync":
                safe_file[entry[1]] = i
            elif entry[0] == "sync_folder":
                safe_folder[entry[1]] = i
        keep = draw.choice([0.0, 0.5, 0.9])
        tree: Tree = {}
        data: dict[int, bytearray] = {}
        for i, (kind, *arguments) in enumerate(self.log[:moment]):
            if kind in {"write", "truncate"}:
                safe = safe_file.get(arguments[0], -1) > i
                if safe or draw.random() < keep:
                    self._apply_to_file(data, kind, arguments, None if safe else draw)
            elif kind in {"create", "make_folder", "rename", "remove"}:
                safe = safe_folder.get(arguments[-1].parent, -1) > i
                if safe or draw.random() < keep:
                    _apply_to_names(tree, kind, arguments, self.base)
        _write_out(tree, data, target)

    def _apply_to_file(
        self, data: dict[int, bytearray], kind: str, arguments: list[Any], torn: random.Random | None
    ) -> None:
        content = data.setdefault(arguments[0], bytearray())
        if kind == "truncate":
            del content[arguments[1] :]
            return
        _, offset, written = arguments
        if torn is not None:
            kept = torn.choice([0.0, 0.5, 1.0])
            written = bytearray(written)
            for start in range(0, len(written), SECTOR):
                if torn.random() >= kept:
                    written[start : start + SECTOR] = bytes(len(written[start : start + SECTOR]))
            written = written[: torn.choice([len(written), torn.randrange(len(written) + 1)])]
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(written)] = written

    def _wrap(self, operation: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            result = operation(*arguments)
            note(result, *arguments)
            return result

        return run

    def _create(self, descriptor: int, path: Path) -> None:
        inode = len(self.sizes)
        self.open[descriptor] = self.inodes[path] = inode
        self.sizes[inode] = 0
        self.log.append(("create", inode, path))

    def _append_to(self, descriptor: int, path: Path) -> None:
        self.open[descriptor] = self._inode(path)

    def _inode(self, path: Path) -> int:
        """The inode at `path`, looked up under the names its folders had."""
        return self.inodes[path]

    def _write(self, _: None, descriptor: int, parts: list[Any]) -> None:
        inode = self.open[descriptor]
        data = b"".join(bytes(part) for part in parts)
        self.log.append(("write", inode, self.sizes[inode], data))
        self.sizes[inode] += len(data)

    def _truncate(self, _: None, descriptor: int, size: int) -> None:
        inode = self.open[descriptor]
        self.sizes[inode] = size
        self.log.append(("truncate", inode, size))

    def _sync(self, _: None, descriptor: int) -> None:
        self.log.append(("sync", self.open[descriptor]))

    def _close(self, _: None, descriptor: int) -> None:
        del self.open[descriptor]

    def _make_folder(self, _: None, path: Path) -> None:
        self.log.append(("make_folder", path))

    def _sync_folder(self, _: None, path: Path) -> None:
        self.log.append(("sync_folder", path))

    def _rename(self, _: None, source: Path, target: Path) -> None:
        moved = {path: inode for path, inode in self.inodes.items() if path == source or source in path.parents}
        for path in moved:
            del self.inodes[path]
        self.inodes |= {target / path.relative_to(source): inode for path, inode in moved.items()}
        self.log.append(("rename", source, target))

    def _remove_file(self, _: None, path: Path) -> None:
        if self.inodes.pop(path, None) is not None:
            self.log.append(("remove", path))

    def _remove_tree(self, _: None, path: Path) -> None:
        gone = [other for other in self.inodes if path in other.parents]
        for other in gone:
            del self.inodes[other]
        if gone:
            self.log.append(("remove", path))


def _apply_to_names(tree: Tree, kind: str, arguments: list[Any], base: Path) -> None:
    """Change the names as the operation does; one whose folder was lost does nothing."""
    *first, path = arguments
    parent = _folder(tree, path.parent, base)
    if parent is None:
        return
    if kind == "create":
        parent[path.name] = first[0]
    elif kind == "make_folder":
        parent.setdefault(path.name, {})
    elif kind == "remove":
        parent.pop(path.name, None)
    else:
        source = _folder(tree, first[0].parent, base)
        if source is not None and first[0].name in source:
            parent[path.name] = source.pop(first[0].name)


def _folder(tree: Tree, path: Path, base: Path) -> Tree | None:
    found: Any = tree
    for part in path.relative_to(base).parts:
        found = found.get(part) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else None


def _write_out(tree: Tree, data: dict[int, bytearray], target: Path) -> None:
    target.mkdir()
    for name, what in tree.items():
        if isinstance(what, dict):
            _write_out(what, data, target / name)
        else:
            (target / name).write_bytes(data.get(what, b""))
