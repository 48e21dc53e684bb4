import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tracekit.pruning._compile import compiled
from tracekit.pruning.fixed_point import fixed, unit_scale, unscale


@compiled
def product_and_sum(a, b, c):
    return a * b + c


def test_products_are_not_fused_with_sums():
    # (1 + 2⁻²⁷)(1 - 2⁻²⁷) = 1 - 2⁻⁵⁴ rounds to 1; a fused operation would keep the 2⁻⁵⁴.
    assert product_and_sum(1 + 2.0**-27, 1 - 2.0**-27, -1.0) == 0.0


@settings(deadline=None)
@given(st.lists(st.just(0.0) | st.floats(1e-280, 1e300), min_size=1, max_size=50))
def test_the_largest_value_fills_the_unit(values):
    scale = unit_scale(np.array(values))
    largest = fixed(max(values), scale)
    assert largest == 0 if max(values) == 0 else 2**49 <= largest < 2**50
    assert 4096 * largest < 2**62 + 1


def test_1e30_hides_what_is_below_its_unit():
    values = np.array([1e30, 1e16, 1e13])
    scale = unit_scale(values)
    assert [fixed(value, scale) > 0 for value in values] == [True, True, False]


@settings(deadline=None)
@given(st.integers(-(2**62), 2**62), st.integers(1, 4096))
def test_the_sign_of_a_quotient_is_exact(numerator, denominator):
    assert np.sign(unscale(numerator, denominator, 2.0**20)) == np.sign(numerator)


def test_code_without_a_file_is_compiled_all_the_same():
    namespace = {}
    exec("def twice(x):\n    return 2 * x", namespace)  # nothing to key a cache on disk by
    assert compiled(namespace["twice"])(21) == 42


def test_what_is_below_the_smallest_unit_counts_as_nothing():
    values = np.array([1e-320, 5e-324])
    assert [fixed(value, unit_scale(values)) for value in values] == [0, 0]
