"""What the tests of the recorder share."""

import numpy as np
import pytest

from recorders.sim import Environment


@pytest.fixture(scope="session")
def observations():
    """Two observations of one episode of the simulator, which no test writes to."""
    environment = Environment("close_box")
    first = environment.reset(7)
    return [first, environment.step(np.r_[0.05, 0, -0.05, first.state[3:9], 0.0]).observation]
