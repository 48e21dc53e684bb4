from dataclasses import replace

import pytest

from recorders.sim.evaluate import Case, unpruned


@pytest.fixture
def case():
    """Makes a case of the policy `small` by name."""

    def make(name="unpruned", **changes):
        return replace(Case(name, replace(unpruned(), name=name), "small"), **changes)

    return make
