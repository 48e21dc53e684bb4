"""Plain tables into frozen dataclasses and back."""

from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracekit._fields import build, nearest, plain
from tracekit.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    size: int = 1
    weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class Outer:
    name: str = "x"
    share: float = 0.5
    on: bool = False
    mode: Literal["a", "b", 3] = "a"
    layers: Literal["all"] | tuple[int, ...] = "all"
    limit: int | None = None
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self):
        if self.share > 1:
            raise ConfigError(f"share = {self.share}: must be at most 1")


OUTER = st.builds(
    Outer,
    name=st.text(),
    share=st.floats(0, 1),
    on=st.booleans(),
    mode=st.sampled_from(["a", "b", 3]),
    layers=st.just("all") | st.lists(st.integers()).map(tuple),
    limit=st.none() | st.integers(),
    inner=st.builds(Inner, size=st.integers(), weights=st.lists(st.floats(allow_nan=False)).map(tuple)),
)


@given(OUTER)
def test_build_is_the_inverse_of_plain(value):
    assert build(Outer, plain(value), "part") == value


def test_plain_values_are_plain():
    assert plain(Outer(layers=(1, 2), inner=Inner(weights=(0.5,)))) == {
        "name": "x",
        "share": 0.5,
        "on": False,
        "mode": "a",
        "layers": [1, 2],
        "limit": None,
        "inner": {"size": 1, "weights": [0.5]},
    }
    assert plain({1: (Inner(),)}) == {"1": [{"size": 1, "weights": []}]}


def test_whole_numbers_are_taken_as_fractions_and_not_the_other_way_round():
    built = build(Outer, {"share": 1, "inner": {"weights": [1, 0.5]}}, "part")
    assert type(built.share) is float
    assert [type(weight) for weight in built.inner.weights] == [float, float]
    with pytest.raises(ConfigError, match=r"part\.inner\.size = 1\.0: give an integer"):
        build(Outer, {"inner": {"size": 1.0}}, "part")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"nane": "y"},
            "part.nane: unknown key; did you mean 'name'? known: inner, layers, limit, mode, name, on, share",
        ),
        ({"inner": {"zzz": 1}}, "part.inner.zzz: unknown key; known: size, weights"),
        ({"inner": []}, "part.inner = []: give a table"),
        ({"name": 1}, "part.name = 1: give a string"),
        ({"on": 1}, "part.on = 1: give true or false"),
        ({"share": True}, "part.share = True: give a number"),
        ({"share": "1"}, "part.share = '1': give a number"),
        ({"mode": "c"}, "part.mode = 'c': choose one of 'a', 'b', 3"),
        ({"mode": 3.0}, "part.mode = 3.0: choose one of 'a', 'b', 3"),
        ({"limit": "9"}, "part.limit = '9': give an integer"),
        ({"inner": {"weights": 1}}, "part.inner.weights = 1: give a list"),
        ({"inner": {"weights": [1, "2"]}}, "part.inner.weights[1] = '2': give a number"),
        ({"share": 2}, "part: share = 2.0: must be at most 1"),
    ],
)
def test_messages_say_where_what_and_which(table, message):
    with pytest.raises(ConfigError) as caught:
        build(Outer, table, "part")
    assert str(caught.value) == message


def test_a_union_is_refused_by_its_first_choice():
    with pytest.raises(ConfigError, match="part\\.layers = 'some'"):
        build(Outer, {"layers": "some"}, "part")


def test_nearest_names_the_closest_and_all():
    assert nearest("taus", ["beta", "tau_2d", "tau"]) == "did you mean 'tau'? known: beta, tau, tau_2d"
    assert nearest("zzz", ["b", "a"]) == "known: a, b"
