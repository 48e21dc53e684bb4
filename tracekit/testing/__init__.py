"""Test a pruner of your own: `check_pruner` in one line of a pytest function."""

from tracekit.testing.inputs import random_observables, random_scores
from tracekit.testing.pruners import check_pruner

__all__ = ["check_pruner", "random_observables", "random_scores"]
