import pytest

from tests.small import make_policy
from tracekit.policy import register_policy

register_policy("small-blind", lambda precision: make_policy(dtype=precision.dtype, name="blind"))


@pytest.fixture
def short_episodes(monkeypatch):
    """Two key poses: enough for a mask to follow another."""
    monkeypatch.setattr("recorders.sim.environment.MAX_STEPS", 2)
