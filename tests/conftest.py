"""What all tests share: one compute thread, recorded traces, and the promise that nothing is left behind."""

import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is first imported

import pytest
import torch

from tests.small import make_policy, record_trace
from tracekit.policy import load_policy

THREADS = 1
torch.set_num_threads(THREADS)  # two workers on two cores: more threads would only wait for each other

_shared = []


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """Fails a test that leaves hooks on a shared policy, or another number of threads."""
    yield
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    hooked = []
    for policy in _shared:
        for name, module in policy.named_modules():
            hooks = (module._forward_hooks, module._forward_pre_hooks)
            hooked += [name for left in hooks if left]
            for left in hooks:
                left.clear()
    assert not hooked, f"hooks were left on {hooked}"
    assert threads == THREADS, f"the number of threads was left at {threads}"


@pytest.fixture(scope="session")
def reference_policy():
    """The policy `reference`; shared, so leave it as it is."""
    _shared.append(load_policy("reference"))
    return _shared[-1]


@pytest.fixture(scope="session")
def small_policy():
    """The policy `small`; shared, so leave it as it is."""
    _shared.append(make_policy())
    return _shared[-1]


@pytest.fixture(scope="session")
def trace(tmp_path_factory, reference_policy):
    """A trace of the reference policy, cut off: close_box-7 with 4 steps, close_laptop-3 with 2. Read only."""
    path = tmp_path_factory.mktemp("reference") / "trace.zarr"
    return record_trace(path, reference_policy, (("close_box", 7, 4), ("close_laptop", 3, 2)))


@pytest.fixture(scope="session")
def small_trace(tmp_path_factory, small_policy):
    """The same episodes recorded with the small policy. Read only."""
    path = tmp_path_factory.mktemp("small") / "trace.zarr"
    return record_trace(path, small_policy, (("close_box", 7, 4), ("close_laptop", 3, 2)))


@pytest.fixture(scope="session")
def golden():
    """The folder of golden data that TRACEKIT_GOLDEN names."""
    root = os.environ.get("TRACEKIT_GOLDEN")
    if not root:
        pytest.skip("TRACEKIT_GOLDEN is not set: no golden data to compare with")
    return Path(root)
