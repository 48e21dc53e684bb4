"""Running `tracekit` without a new process."""

import json
import sys
from typing import NamedTuple

import pytest

from tracekit.cli import main


class Ran(NamedTuple):
    """How a call of the command line ended."""

    status: int
    out: str
    err: str

    @property
    def data(self):
        """The one JSON object that was printed; not-a-number is refused."""
        return json.loads(self.out, parse_constant=lambda word: pytest.fail(f"{word} in JSON"))


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["tracekit", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return Ran(stopped.value.code, out, err)

    return call
