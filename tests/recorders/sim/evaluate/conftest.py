from dataclasses import replace

import pytest

from recorders.sim.evaluate import Case, unpruned
from tests.small import make_policy
from tracekit.policy import register_policy

register_policy("small-blind", lambda precision: make_policy(dtype=precision.dtype, name="blind"))


@pytest.fixture
def short_episodes(monkeypatch):
    """Two key poses: enough for a mask to follow another."""
    monkeypatch.setattr("recorders.sim.environment.MAX_STEPS", 2)


@pytest.fixture
def case():
    """Makes a case of the policy `small` by name."""

    def make(name="unpruned", **changes):
        return replace(Case(name, replace(unpruned(), name=name), "small"), **changes)

    return make
