"""Names that are taken for others, folders that were lost, and files where folders belong."""

from __future__ import annotations

import pytest

from tests.tracekit.store.support import SCHEMA, check_episode, leave_cut_off, record
from tracekit.errors import TraceError
from tracekit.store import EpisodeInfo, Trace, TraceWriter, repair, verify, writer
from tracekit.store.schema import check_id


def test_an_id_that_looks_like_a_step_log_is_refused(make_trace):
    with (
        TraceWriter.append(make_trace(), {}) as trace,
        pytest.raises(
            TraceError, match=r"'foo\.jsonl' cannot be the id of an episode: step logs end in \.jsonl; leave"
        ),
    ):
        trace.episode(EpisodeInfo("foo.jsonl"), SCHEMA)


def test_an_episode_whose_id_looks_like_a_step_log_is_kept_where_it_was_begun_before(make_trace, monkeypatch):
    path = make_trace(2)
    with TraceWriter.append(path, {}) as trace:
        record(trace, "foo", 3, 1)
    with monkeypatch.context() as patched:
        patched.setattr(writer, "check_new_id", check_id)
        leave_cut_off(path, "foo.jsonl", 4, 9)
    assert [problem.path for problem in verify(path).problems] == ["journal/running/foo.jsonl"]
    assert repair(path).actions == ("episode 'foo.jsonl': was cut off; its first 4 steps are kept, marked truncated",)
    assert verify(path).clean
    check_episode(Trace.open(path), "foo", 3, 1)
    check_episode(Trace.open(path), "foo.jsonl", 4, 9)


def test_a_store_whose_empty_folders_were_lost_goes_on(make_trace):
    path = make_trace()
    for folder in ("manifests", "running"):
        (path / "journal" / folder).rmdir()
    assert verify(path).clean
    with TraceWriter.append(path, {}) as trace:
        record(trace, "new", 3, 1)
    assert verify(path).clean
    check_episode(Trace.open(path), "new", 3, 1)
