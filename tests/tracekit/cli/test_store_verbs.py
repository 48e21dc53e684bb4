"""`verify`, `repair` and `prune-store` on the command line: what they print and how they end."""

from __future__ import annotations

import json
import sys

import pytest

from tests.tracekit.store.support import record
from tracekit.cli import main
from tracekit.store import Trace, TraceWriter


@pytest.fixture
def trace(tmp_path):
    with TraceWriter.create(tmp_path / "t.zarr", {}) as writer:
        record(writer, "ep-0", 4)
    return tmp_path / "t.zarr"


@pytest.fixture
def tracekit(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["tracekit", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return run


def test_verify_repair_verify(trace, tracekit):
    status, out, _ = tracekit("verify", trace)
    assert (status, out.count("\n")) == (0, 1)
    assert "1 episodes" in out
    assert "clean" in out
    (trace / "episodes/ep-0/zarr.json").write_text("{}")
    status, out, _ = tracekit("verify", trace)
    assert status == 1
    assert "episodes/ep-0/zarr.json has 2 bytes instead of" in out
    status, out, _ = tracekit("verify", trace, "--json")
    assert status == 1
    assert json.loads(out)["problems"][0]["episode"] == "ep-0"
    status, out, _ = tracekit("repair", trace)
    assert status == 0
    assert "episodes/ep-0/zarr.json: made anew" in out
    status, out, _ = tracekit("repair", trace, "--json")
    assert (status, json.loads(out)["actions"]) == (0, [])
    assert tracekit("verify", trace)[0] == 0


def test_what_is_no_store_ends_with_one_line_and_2(tmp_path, tracekit):
    for verb in (["verify"], ["repair"], ["prune-store", "--drop", "x"]):
        status, out, err = tracekit(*verb, tmp_path)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "is not a trace: it is an empty folder" in err


def test_prune_store(trace, tracekit):
    status, out, _ = tracekit("prune-store", trace, "--drop", "streams/*", "--dry-run")
    assert status == 0
    assert "would free 0.0 MB in 1 episodes" in out
    assert "streams/arm/value" in Trace.open(trace).episode("ep-0")
    status, out, _ = tracekit("prune-store", trace, "--drop", "*", "--dry-run")
    assert status == 0
    assert "kept, because every step needs them: hidden/last, nothing, observables/attention and 5 more\n" in out
    status, out, _ = tracekit("prune-store", trace, "--drop", "streams/*", "--drop", "depth", "--json")
    assert (status, json.loads(out)["keys"]) == (0, ["depth", "streams/arm/time_ns", "streams/arm/value"])
    assert "depth" not in Trace.open(trace).episode("ep-0")
    for key in ("streams/*", "hidden/*", "hidden/last", "*/*/*/*"):
        status, out, err = tracekit("prune-store", trace, "--drop", key)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert len(err) < 300
