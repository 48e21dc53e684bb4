"""Papers are found by the weights they are of, and are whole or refused."""

import json
from pathlib import Path

import pytest

from recorders.sim.train.papers import papers_of, plan_of, read_papers
from tests.recorders.sim.papers import papers_for
from tracekit.errors import PolicyError


@pytest.fixture
def policy(tmp_path):
    """A directory as in the folder of a run."""
    directory = tmp_path / "run" / "policy"
    directory.mkdir(parents=True)
    return directory


def write(directory, content):
    (directory / "training.json").write_text(content if isinstance(content, str) else json.dumps(content))


def tasks_of(policy, digest):
    papers = papers_of(policy, digest)
    return None if papers is None else plan_of(papers).tasks


def test_without_papers_nothing_is_known(policy):
    assert papers_of(policy, "a") is None
    assert papers_of(policy / "missing", "a") is None


def test_papers_in_the_directory_go_before_those_around_it(policy):
    write(policy.parent, papers_for("a", tasks=["close_box"]))
    assert tasks_of(policy, "a") == ("close_box",)
    write(policy, papers_for("a", tasks=["close_laptop", "close_fridge"]))
    assert tasks_of(policy, "a") == ("close_laptop", "close_fridge")


def test_papers_are_found_from_within_and_through_a_link(policy, tmp_path, monkeypatch):
    write(policy.parent, papers_for("a"))
    (tmp_path / "link").symlink_to(policy)
    monkeypatch.chdir(policy)
    for directory in (Path(), tmp_path / "link"):
        assert tasks_of(directory, "a") == ("close_box",)


def test_papers_of_other_weights_are_passed_over(policy):
    write(policy, papers_for("b"))
    assert papers_of(policy, "a") is None
    write(policy.parent, papers_for("a"))
    for foreign in (papers_for("b"), {"weights_digest": "b"}, []):
        write(policy, foreign)
        assert tasks_of(policy, "a") == ("close_box",)


@pytest.mark.parametrize(
    "changes",
    [
        {"plan": {"tasks": ["close_box"], "never": 1}},
        {"plan": {"tasks": "close_box"}},
        {"plan": {"tasks": ["close_bok"]}},
        {"plan": 3},
        {"before": 7},
        {"before": [{"x": 1}]},
        {"seconds": "long"},
        {"seconds": float("nan")},
        {"seconds": 10**400},
        {"step": -1},
        {"step": 1.5},
        {"plan": {"tasks": ["close_box"], "steps": float("nan")}},
        {"plan": {"tasks": ["close_box"], "batch": float("inf")}},
        {"plan": {"tasks": ["close_box"], "blind": "x"}},
        {"demonstrations_digest": 5},
        {"held_out": {"noise": float("nan")}},
        {"held_out": {"noise": None}},
    ],
)
def test_damaged_papers_are_named_before_anything_is_done_with_them(policy, changes):
    write(policy, papers_for("a") | changes)
    for read in (lambda: papers_of(policy, "a"), lambda: read_papers(policy)):
        with pytest.raises(PolicyError, match=r"training\.json: .*restore the file"):
            read()


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "\udcff"])
def test_what_is_no_json_is_named(policy, content):
    (policy / "training.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(PolicyError, match=r"training\.json: cannot be read"):
        papers_of(policy, "a")
