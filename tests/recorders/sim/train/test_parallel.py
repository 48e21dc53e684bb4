"""Demonstrations by several processes."""

import pytest

from recorders.sim.train.demonstrations import demonstrations_digest, record_demonstrations


@pytest.mark.slow
def test_two_processes_record_what_one_records(demonstrations, plan, tmp_path):
    seen = []
    made = record_demonstrations(tmp_path, plan.demonstrations, 2, lambda *progress: seen.append(progress))
    assert made == len(plan.demonstrations) == 2
    assert [done for _, done, _ in seen] == [1, 2]
    assert demonstrations_digest(tmp_path, plan.demonstrations) == demonstrations_digest(
        demonstrations, plan.demonstrations
    )
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".npz"}
