"""Recordings that die at a chosen file operation: one process, forked once per death, so that a death costs no start.

`python -m tests.tracekit.store.killing MODULE` calls `prepare()` of the module, which returns `record(path, say)`, and
then runs that in a forked child for every line it is given. The child is killed (SIGKILL) at its file operation number
`kill_at`, counted from 1: a write stops half way, anything else does not happen. The state after an operation is the
one before the next.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tracekit.store import files

KINDS = ("write", "sync", "rename", "sync_folder", "create", "append_to", "make_folder", "remove_file", "truncate")


class Killer:
    """The process that forks. `operations` counts a whole recording first; `kill` runs one that dies."""

    def __init__(self, module: str) -> None:
        self._module = module

    def operations(self, path: Path) -> list[str]:
        """What every file operation of a whole recording into `path` was: `rename`, `write commits.jsonl`, …"""
        said = self.kill(path, 0, status=0)
        return [line.removeprefix("operation ") for line in said if line.startswith("operation ")]

    def kill_after(self, path: Path, seconds: float) -> list[str]:
        """What a recording into `path` said in the time that it was given; it may have come to its end."""
        return self.kill(path, -1, status=None, seconds=seconds)

    def kill(
        self, path: Path, kill_at: int, status: int | None = signal.SIGKILL, seconds: float | None = None
    ) -> list[str]:
        """What the recording into `path` said before it died at operation `kill_at`."""
        progress = path.with_suffix(".progress")
        progress.write_text("")  # a child that dies before it opens it must not seem to have said what the last one did
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(path), str(progress), kill_at, seconds]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        expected = {0, signal.SIGKILL} if status is None else {status}
        assert int(answer) in expected, (answer, progress.read_text()[-300:])
        return progress.read_text().splitlines()

    def __enter__(self) -> Self:
        root = Path(__file__).parents[3]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.tracekit.store.killing", self._module],
            env={**os.environ, "PYTHONPATH": str(root)},
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()


def serve(module: str) -> None:
    record = importlib.import_module(module).prepare()
    for line in sys.stdin:
        path, progress, kill_at, seconds = json.loads(line)
        child = os.fork()
        if child == 0:
            try:
                run(record, Path(path), progress, kill_at)
            except BaseException as error:  # noqa: BLE001  (told to the test)
                Path(progress).write_text(repr(error))
                os._exit(1)
            os._exit(0)
        if seconds is not None:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)  # it is not waited for yet: its id is its own
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status) * (-1 if os.WIFSIGNALED(status) else 1)}\n")
        sys.stdout.flush()


def run(record: Callable[[Path, Callable[[str], None]], None], path: Path, progress: str, kill_at: int) -> None:
    done = os.open(progress, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    names: dict[int, str] = {}
    count = 0

    def say(what: str) -> None:
        os.write(done, f"{what}\n".encode())

    def counted(kind: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def operate(*arguments: Any) -> Any:
            nonlocal count
            count += 1
            if count == kill_at:
                if kind == "write":
                    data = b"".join(bytes(part) for part in arguments[1])
                    os.write(arguments[0], data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            if not kill_at:
                say(f"operation {kind} {names.get(arguments[0], '')}".strip())
            result = operation(*arguments)
            if kind in {"create", "append_to"}:
                names[result] = arguments[0].name
            return result

        return operate

    for kind in KINDS:
        setattr(files, kind, counted(kind, getattr(files, kind)))
    record(path, say)


if __name__ == "__main__":
    serve(sys.argv[1])
