from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from tests.oracles.tri_stage import clusters as brute_force
from tracekit.pruning.kmeans import kmeans_1d

NUMBERS = st.one_of(
    st.integers(0, 6).map(float),
    st.integers(0, 30).map(lambda i: i / 3),
    st.floats(0, 1, width=32),
    st.floats(0, 2.0**127, width=32),
    st.floats(1e-200, 1e-40),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=12), st.integers(1, 3))
def test_finds_the_best_of_all_partitions_and_the_lowest_of_equal_ones(values, k):
    found = kmeans_1d(np.array(values), k)
    labels, count = brute_force(values, k)
    assert found.labels.tolist() == labels
    assert len(found.centroids) == count


def best_cuts(values):
    """The two cuts of the distinct values with the greatest ΣS²/n, the lowest of equal ones, exactly."""
    distinct = sorted(set(values))
    sums, sizes = [0], [0]
    for value in distinct:
        sums.append(sums[-1] + value * values.count(value))
        sizes.append(sizes[-1] + values.count(value))
    segment = {
        (i, j): Fraction((sums[j] - sums[i]) ** 2, sizes[j] - sizes[i])
        for j in range(1, len(distinct) + 1)
        for i in range(j)
    }
    count = len(distinct)
    pairs = [(i, j) for j in range(2, count) for i in range(1, j)]
    best = max(segment[0, i] + segment[i, j] + segment[j, count] for i, j in pairs)
    first, second = min(
        ((i, j) for i, j in pairs if segment[0, i] + segment[i, j] + segment[j, count] == best),
        key=lambda cut: (cut[1], cut[0]),
    )
    return [int(value >= distinct[first]) + int(value >= distinct[second]) for value in values]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([13, 24, 40, 70]),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["even", "tied", "grouped", "skewed"]),
)
def test_stretches_that_are_left_out_do_not_hold_the_best(size, seed, kind):
    rng = np.random.default_rng(seed)
    values = {
        "even": lambda: np.arange(size),
        "tied": lambda: rng.integers(0, size // 2, size),
        "grouped": lambda: rng.integers(0, 20, size) + 100 * rng.integers(0, 4, size),
        "skewed": lambda: np.rint(rng.lognormal(5, 2, size)),
    }[kind]()
    whole = [int(value) for value in values]
    assert kmeans_1d(np.array(whole, float)).labels.tolist() == best_cuts(whole)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.randoms())
def test_order_cannot_matter(values, random):
    shuffled = list(enumerate(values))
    random.shuffle(shuffled)
    labels = kmeans_1d(np.array(values, float)).labels
    again = kmeans_1d(np.array([value for _, value in shuffled], float)).labels
    assert [labels[index] for index, _ in shuffled] == again.tolist()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60))
def test_equal_values_share_a_cluster_and_there_are_as_many_as_distinct_values(values):
    found = kmeans_1d(np.array(values, float))
    label_of = dict(zip(values, found.labels.tolist(), strict=True))
    assert [label_of[value] for value in values] == found.labels.tolist()
    assert len(found.centroids) == min(3, len(set(values))) == len(set(found.labels.tolist()))
    for rank, centroid in enumerate(found.centroids):
        members = [value for value in values if label_of[value] == rank]
        assert centroid == pytest.approx(sum(members) / len(members), rel=1e-12)


def cost(values, labels):
    return sum(((values[labels == c] - values[labels == c].mean()) ** 2).sum() for c in set(labels.tolist()))


@pytest.mark.parametrize("seed", range(5))
def test_is_never_worse_than_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    values = rng.lognormal(size=256).astype(np.float32).astype(float)
    theirs = KMeans(3, n_init=10, random_state=seed).fit_predict(values[:, None])
    assert cost(values, kmeans_1d(values).labels) <= cost(values, theirs) * (1 + 1e-12)


def test_exact_ties_take_the_lowest_cuts():
    # {0}{1}{2,3}, {0}{1,2}{3} and {0,1}{2}{3} cost the same; so do their images far from the origin.
    for offset in (0, 2**30):
        assert kmeans_1d(np.arange(4.0) + offset).labels.tolist() == [0, 1, 2, 2]
    assert kmeans_1d(np.arange(3.0), 2).labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize("k", [2, 3])
def test_ties_that_rounding_would_break_are_ties(k):
    # Mirrored values: whatever a partition costs, its mirror image costs the same, exactly but not in float64.
    rng = np.random.default_rng(0)
    for _ in range(100):
        half = np.repeat(rng.integers(0, 2**40, 4), rng.integers(1, 4, 4))
        values = np.concatenate([half, rng.integers(2**41, 2**43) - half]).astype(float)
        assert kmeans_1d(values, k).labels.tolist() == brute_force(values.tolist(), k)[0]


def test_four_thousand_values_do_not_overflow():
    values = np.full(4096, np.float64(np.finfo(np.float32).max))
    values[:7], values[7:9] = 0, values[9] / 2
    labels = kmeans_1d(values).labels
    assert labels.tolist() == [0] * 7 + [1] * 2 + [2] * 4087


@pytest.mark.parametrize("bad", [[], [np.nan], [np.inf], [-1.0], [[1.0]]])
def test_refuses_what_it_cannot_cluster(bad):
    with pytest.raises(ValueError, match="finite numbers"):
        kmeans_1d(np.array(bad, float))


def test_refuses_more_than_three_clusters():
    with pytest.raises(ValueError, match="clusters = 4"):
        kmeans_1d(np.ones(3), 4)
