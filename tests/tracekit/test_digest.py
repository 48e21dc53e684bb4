"""Canonical JSON and digests."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracekit.digest import canonical_json, digest_arrays, digest_json
from tracekit.errors import TracekitError

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(plain)
def test_canonical_json_is_json_of_the_same_value(value):
    assert json.loads(canonical_json(value)) == value


def test_canonical_json_is_independent_of_order_and_container():
    assert (
        canonical_json({"b": (1, 2), "a": {"y": np.int64(3), "x": np.float32(0.5)}})
        == b'{"a":{"x":0.5,"y":3},"b":[1,2]}'
    )
    assert canonical_json("α") == '"α"'.encode()
    assert digest_json([1]) == hashlib.sha256(b"[1]").hexdigest()
    assert digest_json([1]) != digest_json([1.0])


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        [float("inf")],
        {"a": -float("inf")},
        {1: 2},
        [{None: 1}],
        {1, 2},
        b"x",
        np.zeros(2),
        np.float32("nan"),
    ],
)
def test_canonical_json_refuses_what_json_cannot_say(value):
    with pytest.raises(TracekitError, match="not expressible as JSON"):
        canonical_json(value)


def test_array_digest_ignores_layout_and_byte_order_only():
    base = {"a": np.arange(6, dtype="<i4").reshape(2, 3), "b": np.array(1.5)}
    same = {"b": np.array(1.5, ">f8"), "a": np.asfortranarray(base["a"]).astype(">i4", order="F")}
    assert digest_arrays(base) == digest_arrays(same)
    others = [
        {**base, "a": base["a"].astype("<i8")},
        {**base, "a": base["a"].reshape(3, 2)},
        {**base, "a": base["a"].view("<u4")},
        {**base, "b": np.array([1.5])},
        {"a": base["b"], "b": base["a"]},
        {"a": base["a"]},
    ]
    assert len({digest_arrays(arrays) for arrays in [base, *others]}) == 1 + len(others)


def test_array_digest_is_what_it_says():
    expected = hashlib.sha256(b'["x","<f4",[2]]\n' + np.array([1, 2], "<f4").tobytes()).hexdigest()
    assert digest_arrays({"x": np.array([1, 2], np.float32)}) == expected
    with pytest.raises(TracekitError, match="array 'o' is object"):
        digest_arrays({"o": np.array([None])})
