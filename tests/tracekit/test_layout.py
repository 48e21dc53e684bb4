import numpy as np
import pytest

from tracekit.errors import PolicyError
from tracekit.layout import PatchAlignment, Span, TokenLayout

TWO_VIEWS = TokenLayout.of_lengths(
    ("bos", 1),
    ("point", 256),
    ("image.front", 256),
    ("image.wrist", 256),
    ("text", 5),
    ("proprio", 1),
    ("timestep", 1),
    ("action", 2),
    ("tail", 1),
)


def test_spans_tile_the_sequence():
    assert TWO_VIEWS.length == 779
    assert TWO_VIEWS.span("image.wrist") == Span("image.wrist", 513, 769)
    assert TWO_VIEWS.prefix_length == TWO_VIEWS.span("timestep").start
    assert TokenLayout.from_json(TWO_VIEWS.to_json()) == TWO_VIEWS


def test_visual_positions_are_images_view_after_view_then_points():
    visual = TWO_VIEWS.visual_positions
    assert visual[:512].tolist() == list(range(257, 769))
    assert visual[512:].tolist() == list(range(1, 257))
    assert TWO_VIEWS.views == ("front", "wrist")


def test_query_groups_leave_out_bos_timestep_and_tail():
    assert TWO_VIEWS.group_positions("text").tolist() == [769, 770, 771, 772, 773]
    assert TWO_VIEWS.group_positions("state").tolist() == [774]
    assert TWO_VIEWS.group_positions("action").tolist() == [776, 777]


def test_a_policy_without_points_has_no_point_positions():
    layout = TokenLayout.of_lengths(("bos", 1), ("image.front", 256), ("text", 3), ("action", 1))
    assert len(layout.point_positions) == 0
    assert layout.prefix_length == 260
    assert len(layout.group_positions("state")) == 0


@pytest.mark.parametrize(
    ("spans", "what"),
    [
        ((Span("bos", 0, 1), Span("text", 2, 3)), "tile"),
        ((Span("bos", 0, 1), Span("bos", 1, 3)), "unique"),
        ((Span("bos", 0, 1), Span("text", 1, 0)), "tile"),
    ],
)
def test_a_layout_with_gaps_or_twins_is_refused(spans, what):
    with pytest.raises(PolicyError, match=what):
        TokenLayout(spans)


def test_an_unknown_span_is_named_with_those_that_are_there():
    with pytest.raises(PolicyError, match=r"'tactile'.*bos, point"):
        TWO_VIEWS.span("tactile")


def test_alignment_counts_points_per_patch():
    counts = PatchAlignment(np.array([0, 3, 3, -1], np.int32)).counts(5)
    assert counts.tolist() == [1, 0, 0, 2, 0]
