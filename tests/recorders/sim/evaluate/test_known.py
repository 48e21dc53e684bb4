"""The file of finished episodes: what is taken from it, what is repaired, and what is left alone."""

import json

import pytest

from recorders.sim.evaluate import evaluate
from recorders.sim.evaluate import run as running
from recorders.sim.evaluate.episode import EpisodeOutcome
from recorders.sim.evaluate.known import add_episode, known_episodes
from tests.small import make_config
from tracekit.errors import TraceError

TASK, SEED = "close_box", 3
OUTCOME = EpisodeOutcome(success=True, steps=2, step_ms=(1.5, 2.0), pruned_image=0.5, pruned_point=0.25)


@pytest.fixture
def two_episodes(tmp_path):
    path = tmp_path / "episodes.jsonl"
    for key in "ab":
        add_episode(path, {"key": key, "name": "unpruned"}, OUTCOME)
    return path


def test_what_was_added_is_known(two_episodes, tmp_path):
    assert known_episodes(two_episodes) == {"a": OUTCOME, "b": OUTCOME}
    assert known_episodes(tmp_path / "nothing") == {}


@pytest.mark.usefixtures("short_episodes")
def test_a_stopped_evaluation_goes_on_and_repeats_nothing(tmp_path, monkeypatch, case):
    out = tmp_path / "episodes.jsonl"
    evaluate([case()], [TASK], 1, SEED, out=out)
    entry = json.loads(out.read_text())
    out.write_text(json.dumps(entry | {"success": True, "steps": 7, "step_ms": [1.0] * 7}) + '\n{"key": "cut o')
    ran = []
    real = running.run_episode
    monkeypatch.setattr(running, "run_episode", lambda *a, **b: ran.append(a[2]) or real(*a, **b))
    whole = evaluate([case()], [TASK], 2, SEED, out=out)
    assert ran == [SEED + 1]
    assert [(outcome.success, outcome.steps) for outcome in whole.cases[0].outcomes] == [(True, 7), (False, 2)]
    assert len(out.read_text().splitlines()) == 2
    evaluate([case("another name")], [TASK], 2, SEED, out=out)
    assert ran == [SEED + 1]
    evaluate([case("naive", configuration=make_config("naive", "prefix_kv"))], [TASK], 1, SEED, out=out)
    assert ran == [SEED + 1, SEED]


@pytest.mark.parametrize("cut", [b"{", b'{"key": "c', b'{"key": "c", "success": tr'])
def test_a_line_that_was_cut_off_is_removed_and_nothing_else(two_episodes, tmp_path, cut):
    before = two_episodes.read_bytes()
    two_episodes.write_bytes(before + cut)
    assert set(known_episodes(two_episodes)) == {"a", "b"}
    assert two_episodes.read_bytes() == before
    alone = tmp_path / "alone.jsonl"
    alone.write_bytes(cut)
    assert known_episodes(alone) == {}
    assert alone.read_bytes() == b""


def test_a_line_that_lacks_its_end_alone_is_kept_and_ended(two_episodes):
    before = two_episodes.read_bytes()
    two_episodes.write_bytes(before[:-1])
    assert set(known_episodes(two_episodes)) == {"a", "b"}
    assert two_episodes.read_bytes() == before


FOREIGN = [
    b'{"tasks": ["close_box"], "configurations": []}',
    b'{"tasks": ["close_box"], "configurations": []}\n',
    b"[1, 2]",
    b"notes",
    b"hello\nhello\n",
    b"\n",
    b"[" * 100_000,
    bytes(range(128, 256)),
    b"\x00" * 8,
]


@pytest.mark.parametrize("content", FOREIGN, ids=range(len(FOREIGN)))
def test_a_file_that_holds_something_else_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=r"line 1 is no episode .* give --out another file") as raised:
        known_episodes(path)
    assert len(str(raised.value).splitlines()) == 1
    assert path.read_bytes() == content


@pytest.mark.parametrize("line", [b'{"key": "c"}', b"{}\n", b"\xff\n", b'{"key": "c\n'])
def test_another_line_among_episodes_is_refused_and_left_alone(two_episodes, line):
    content = two_episodes.read_bytes() + line
    two_episodes.write_bytes(content)
    with pytest.raises(TraceError, match="line 3 is no episode"):
        known_episodes(two_episodes)
    assert two_episodes.read_bytes() == content
