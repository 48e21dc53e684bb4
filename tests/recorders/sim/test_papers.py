from __future__ import annotations

import json

import pytest

from recorders.sim.papers import papers_of, trained_tasks
from tracekit.errors import PolicyError


@pytest.fixture
def policy(tmp_path):
    """A directory as in the folder of a run."""
    directory = tmp_path / "run" / "policy"
    directory.mkdir(parents=True)
    return directory


def write(directory, digest, *tasks):
    (directory / "training.json").write_text(json.dumps({"weights_digest": digest, "plan": {"tasks": tasks}}))


def test_without_papers_nothing_is_known(policy):
    assert papers_of(policy, "a") is None
    assert trained_tasks(policy, "a") is None
    assert trained_tasks(policy / "missing", "a") is None


def test_papers_in_the_directory_go_before_those_around_it(policy):
    write(policy.parent, "a", "close_box")
    assert trained_tasks(policy, "a") == {"close_box"}
    write(policy, "a", "close_laptop", "close_fridge")
    assert trained_tasks(policy, "a") == {"close_laptop", "close_fridge"}


def test_papers_of_other_weights_are_passed_over(policy):
    write(policy, "b", "close_laptop")
    assert trained_tasks(policy, "a") is None
    write(policy.parent, "a", "close_box")
    assert trained_tasks(policy, "a") == {"close_box"}
    (policy / "training.json").write_text("[]")
    assert papers_of(policy, "a")["plan"]["tasks"] == ["close_box"]


@pytest.mark.parametrize("content", ["{", '{"weights_digest": "a"}', '{"weights_digest": "a", "plan": {"tasks": 3}}'])
def test_broken_papers_are_named(policy, content):
    (policy / "training.json").write_text(content)
    with pytest.raises(PolicyError, match=r"training\.json.*mend or remove it"):
        trained_tasks(policy, "a")
