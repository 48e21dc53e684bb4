"""The trace that ships with the package: whole, small, honest, and of the policy that ships with it."""

from pathlib import Path

import pytest

from replay.source import TraceSource
from tracekit.errors import TraceError
from tracekit.samples import packaged_trace
from tracekit.store import Trace, verify

SAMPLE = packaged_trace("sample")
LARGEST_BYTES = 5_000_000


def test_the_sample_is_whole_and_small():
    report = verify(SAMPLE)
    assert report.clean, report.problems
    assert sum(file.stat().st_size for file in SAMPLE.rglob("*") if file.is_file()) <= LARGEST_BYTES
    assert not [folder for folder in SAMPLE.rglob("*/") if not any(folder.iterdir())], "git keeps no empty folder"


def test_it_is_of_the_packaged_policy_and_says_what_that_is(reference_policy):
    """Fails when other weights are packaged: run `make sample` then."""
    recorded = Trace.open(SAMPLE).attributes["policy"]
    identity = reference_policy.identity
    assert recorded["weights_digest"] == identity.weights_digest, "run `make sample`"
    assert recorded["config_digest"] == identity.config_digest, "run `make sample`"
    assert recorded["trained"] is identity.trained
    assert Trace.open(SAMPLE).attributes["kind"] == "full"


def test_a_name_is_a_packaged_trace_unless_there_is_such_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert TraceSource("sample").path == SAMPLE
    assert packaged_trace("./sample") == SAMPLE  # pathlib drops the dot
    assert packaged_trace("other/sample") == Path("other/sample")
    with pytest.raises(TraceError, match="nowhere"):
        TraceSource("nowhere")
    (tmp_path / "sample").mkdir()
    assert packaged_trace("sample") == Path("sample")
