import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracekit.errors import TraceError
from tracekit.philox import Modality, Purpose, uniforms
from tracekit.pruning import Decision, DecisionKey, observed_patches, point_mask

KEY = DecisionKey(5, 6, 7)


@st.composite
def cases(draw):
    patches, points = draw(st.integers(1, 6)), draw(st.integers(0, 12))
    mask = draw(st.lists(st.booleans(), min_size=patches, max_size=patches))
    where = draw(st.lists(st.integers(-1, patches - 1), min_size=points, max_size=points))
    return mask, where, draw(st.sampled_from(["keep", "drop", "random"])), draw(st.integers(0, 7))


@settings(max_examples=300, deadline=None)
@given(cases())
def test_a_point_follows_its_patch(case):
    mask, where, rule, index = case
    decision = Decision(np.array(mask), np.array(mask), unprojected=rule)
    found = point_mask(decision, np.array(where, np.int32), index, KEY)
    placed = [mask[p] for p in where if p >= 0]
    share = sum(placed) / len(placed) if placed else 1.0
    drawn = uniforms(KEY, Purpose.UNPROJECTED, Modality.POINT, 256 * index + np.arange(len(where)))
    for point, patch in enumerate(where):
        lost = {"keep": True, "drop": False, "random": drawn[point] < share}[rule]
        assert found[point] == (mask[patch] if patch >= 0 else lost)


def test_random_keeps_unprojected_points_with_the_share_of_the_others():
    where = np.concatenate([np.arange(256) % 4, np.full(2000, -1)]).astype(np.int32)
    mask = np.array([True, False, False, False])
    kept = point_mask(Decision(mask, mask, unprojected="random"), where, 0, KEY)
    assert kept[256:].mean() == pytest.approx(0.25, abs=0.04)


def test_a_pass_has_draws_of_its_own():
    where = np.concatenate([[0, 1], np.full(100, -1)]).astype(np.int32)
    decision = Decision(np.array([True, False]), np.array([True, False]), unprojected="random")
    assert point_mask(decision, where, 0, KEY).tolist() != point_mask(decision, where, 1, KEY).tolist()


def test_no_points_no_mask():
    assert point_mask(Decision(np.ones(4, bool), None), np.zeros(0, np.int32), 0, KEY).shape == (0,)


def test_points_that_do_not_fit_the_decision_are_refused():
    mask = np.ones(4, bool)
    with pytest.raises(TraceError, match="patch 4, but there are 4"):
        point_mask(Decision(mask, mask), np.array([4], np.int32), 0, KEY)
    with pytest.raises(TraceError, match="over 4"):
        point_mask(Decision(mask, None, mask), np.array([0], np.int32), 0, KEY)


@settings(deadline=None)
@given(cases())
def test_observed_is_image_token_and_all_projected_points(case):
    mask, where, _, _ = case
    kept = np.arange(len(where)) % 3 > 0
    found = observed_patches(np.array(mask), kept, np.array(where, np.int32))
    for patch, image in enumerate(mask):
        assert found[patch] == (image and all(k for k, p in zip(kept, where, strict=True) if p == patch))
