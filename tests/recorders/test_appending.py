"""An existing trace is added to where everything agrees, and what is no trace is left alone."""

import pytest

from recorders import Recorder
from tests.recorders.support import EPISODE, ids, record
from tests.small import make_config, make_policy
from tracekit.capture import CaptureSpec
from tracekit.engine import Controller
from tracekit.errors import TraceError


def test_an_episode_that_is_there_is_refused(tmp_path, small_policy, observations):
    path = tmp_path / "trace"
    record(path, small_policy, observations[:1])
    with pytest.raises(TraceError, match=f"episode '{EPISODE}' is already there"):
        record(path, small_policy, observations[:1])
    assert ids(path) == [EPISODE]


@pytest.mark.parametrize(
    ("word", "changes"),
    [
        ("policy", {"policy": 2}),
        ("capture", {"capture": CaptureSpec.minimal()}),
        ("execution", {"config": make_config("none", "encoders")}),
        ("configuration", {"config": make_config("naive")}),
        ("driver", {"driver": "human"}),
        ("source", {"source": {"kind": "elsewhere"}}),
    ],
)
def test_appending_needs_the_same_setting(tmp_path, small_policy, observations, word, changes):
    path = tmp_path / "trace"
    record(path, small_policy, observations[:1], name="first")
    record(path, small_policy, observations[:1], name="second")
    policy = make_policy(seed=changes.pop("policy")) if "policy" in changes else small_policy
    with pytest.raises(TraceError, match=rf": {word}(\.\w+)* is .* in the trace but .* now"):
        record(path, policy, observations[:1], name="third", **changes)
    assert ids(path) == ["first", "second"]


def test_what_is_no_trace_is_not_written_to(tmp_path, small_policy):
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("a note")
    folder.mkdir()
    for path in (file, folder):
        with pytest.raises(TraceError, match=path.name), Recorder(path, Controller(small_policy, make_config())):
            pass
    assert file.read_text() == "a note"
    assert list(folder.iterdir()) == []
