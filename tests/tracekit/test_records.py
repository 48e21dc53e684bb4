"""One control step as named arrays, and back. (What a recording holds as a whole is in tests/recorders.)"""

import numpy as np
import pytest

from tracekit import keys
from tracekit.errors import TraceError
from tracekit.pruning import Reduction
from tracekit.records import field, recorded_draws, recorded_observation, recorded_scores
from tracekit.store import ArraySpec, Trace, copy_trace


@pytest.fixture(scope="module")
def episode(small_trace):
    return Trace.open(small_trace).episode("close_box-7")


def test_a_field_declares_what_it_holds():
    made = field([[1, 2, 3]], "float32", "point xyz", optional=True, colour="none")
    assert made.spec == ArraySpec("float32", (1, 3), ("point", "xyz"), optional=True, attributes={"colour": "none"})
    assert made.value.dtype == np.float32
    scalar = field(7, "int64")
    assert scalar.spec.shape == ()
    assert scalar.spec.axes == ()


def test_axes_and_shape_must_agree():
    with pytest.raises(TraceError, match="name every axis"):
        field(np.zeros((2, 3)), "float32", "point")


def test_observations_come_back_with_the_cameras_of_the_caller(episode):
    first, last = recorded_observation(episode, 0, {}), recorded_observation(episode, 3, {})
    assert list(first.images) == ["front"]
    assert first.images["front"].dtype == np.uint8
    assert first.points.dtype == np.float32
    assert first.state.dtype == np.float64
    assert first.instruction == episode.info.instruction
    assert first.cameras == {}
    assert not np.array_equal(first.state, last.state)


def test_views_come_in_the_order_in_which_they_were_seen():
    class Stored:
        """An episode whose keys sort otherwise than its views go."""

        class info:
            instruction = "close the box"
            attributes = {"views": ["wrist", "front"]}  # noqa: RUF012

        def keys(self):
            return (keys.image("front"), keys.image("wrist"), keys.STATE)

        def __contains__(self, key):
            return key in self.keys()

        def read(self, key, _step):
            return np.zeros(10) if key == keys.STATE else np.full((2, 2, 3), len(key), np.uint8)

    found = recorded_observation(Stored(), 0, {})
    assert list(found.images) == ["wrist", "front"]
    assert found.points is None


def test_draws_and_scores_come_back(episode):
    draws = recorded_draws(episode, 2)
    np.testing.assert_array_equal(draws.noise, episode.read(keys.ACTION_NOISE, 2))
    np.testing.assert_array_equal(draws.fps_starts, episode.read(keys.FPS_STARTS, 2))
    scores = recorded_scores(episode, 2, Reduction())
    np.testing.assert_array_equal(scores.norm_2d, episode.read(keys.score(Reduction().digest, "norm_2d"), 2))
    assert scores.points.sum() == (episode.read(keys.POINT_PATCH, 2)[0] >= 0).sum()


@pytest.mark.parametrize(
    ("key", "read"),
    [
        (keys.ACTION_NOISE, lambda episode: recorded_draws(episode, 0)),
        (keys.FPS_STARTS, lambda episode: recorded_draws(episode, 0)),
        (keys.STATE, lambda episode: recorded_observation(episode, 0, {})),
        (keys.score(Reduction().digest, "points"), lambda episode: recorded_scores(episode, 0, Reduction())),
    ],
)
def test_a_missing_part_is_named(small_trace, tmp_path, key, read):
    copy_trace(small_trace, tmp_path / "bare", drop=lambda name: name == key)
    with pytest.raises(TraceError, match="lacks") as caught:
        read(Trace.open(tmp_path / "bare").episode("close_box-7"))
    assert repr(key) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_step_that_is_not_there_is_named(episode):
    with pytest.raises(TraceError, match="4 steps"):
        recorded_draws(episode, 4)


def test_keys_are_unique_and_paths():
    names = [getattr(keys, name) for name in keys.__all__ if name.isupper()]
    assert len(set(names)) == len(names)
    assert all(name == name.lower() and not name.startswith("/") for name in names)
    assert keys.score("0123456789abcdef" * 4, "points") == "scores/0123456789abcdef/points"
