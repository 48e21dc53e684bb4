"""Test a pruner or a policy of your own: `check_pruner`, `check_policy`, in one line of a pytest function."""

from tracekit.testing.inputs import random_observables, random_scores
from tracekit.testing.policies import check_policy
from tracekit.testing.pruners import check_pruner

__all__ = ["check_policy", "check_pruner", "random_observables", "random_scores"]
