"""Tests against an oracle in two sizes."""

import pytest
from hypothesis import given, settings


def oracle_tests(few, many, *drawn):
    """A test of `few` drawn inputs, which always runs, and a slow one of `many`."""

    def decorate(check):
        one, other = (settings(max_examples=count, deadline=None)(given(*drawn)(check)) for count in (few, many))
        return one, pytest.mark.slow(other)

    return decorate
