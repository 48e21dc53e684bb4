import pytest

from recorders.sim.train.demonstrations import record_demonstrations
from recorders.sim.train.plan import TrainingPlan

TASKS = ("banana_on_plate", "close_box")


@pytest.fixture(scope="session")
def plan():
    """A plan of one episode per task, for a policy of test size."""
    return TrainingPlan(tasks=TASKS, episodes=1, steps=6, batch=3, draws=2)


@pytest.fixture(scope="session")
def demonstrations(tmp_path_factory, plan):
    """A folder with the demonstrations of `plan`, read only; held-out ones are the first of each task."""
    folder = tmp_path_factory.mktemp("demonstrations")
    record_demonstrations(folder, [*plan.demonstrations, *plan.held_out[: len(TASKS)]])
    return folder
