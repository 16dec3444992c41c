import warnings
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustness.statistics.segmentation import partitions, segment, segment_costs, standardise


def planted(starts, layers=24, signatures=6, noise=0.2, seed=0):
    """Signatures with a jump in every one of them at the planted boundaries."""
    random = np.random.default_rng(seed)
    bounds = [*starts, layers]
    means = random.normal(size=(signatures, len(starts)))
    values = np.repeat(means, np.diff(bounds), 1)
    return standardise(values + noise * random.normal(size=values.shape))


def best(signatures):
    return min(partitions(signatures), key=lambda found: found.criterion)


@pytest.mark.parametrize("starts", [(0, 8), (0, 5, 14), (0, 3, 9, 17), (0, 1, 12), (0, 10, 23)])
def test_planted_boundaries_are_recovered(starts):
    found = [planted(starts, seed=seed) for seed in range(10)]
    # Of two means drawn at random, some are too alike to be told apart.
    assert sum(segment(each, len(starts)).starts == starts for each in found) >= 9
    assert sum(best(each).starts == starts for each in found) >= 9


@pytest.mark.slow
def test_on_noise_there_are_none():
    found = [
        len(best(standardise(np.random.default_rng(seed).normal(size=(signatures, layers)))).starts)
        for signatures, layers in ((3, 24), (4, 12), (9, 32))
        for seed in range(40)
    ]
    assert np.mean([count > 1 for count in found]) < 0.05


@given(st.integers(4, 8), st.integers(1, 3), st.integers(2, 4), st.integers(0, 1000), st.booleans())
def test_no_partition_is_cheaper(layers, signatures, count, seed, missing):
    """Held against every partition there is."""
    values = np.random.default_rng(seed).normal(size=(signatures, layers))
    if missing:
        values[0, -1] = np.nan
    values = standardise(values)

    def cost(starts):
        ends = [*starts[1:], layers]
        return sum(
            np.nansum((values[:, a:b] - np.nanmean(values[:, a:b], 1, keepdims=True)) ** 2)
            for a, b in zip(starts, ends, strict=True)
        )

    def allowed(starts):
        sizes = np.diff([*starts, layers])
        return (sizes[1:-1] >= 2).all()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mean of nothing
        every = [
            (0, *rest) for rest in combinations(range(1, layers), count - 1) if allowed((0, *rest))
        ]
        if not every:
            return
        cheapest = min(map(cost, every))
    found = segment(values, count)
    known = (~np.isnan(values)).sum()
    assert found.cost * known == pytest.approx(cheapest, abs=1e-9)
    assert found.starts in every


def test_a_segment_of_one_value_costs_nothing_and_scale_does_not_matter():
    values = np.random.default_rng(0).normal(size=(3, 10))
    costs = segment_costs(standardise(values))
    assert np.allclose(np.diagonal(costs, 1), 0)
    assert costs[0, 10] == pytest.approx(3 * 10)
    again = standardise(values * [[2.0], [30.0], [0.1]] + 7)
    np.testing.assert_allclose(segment_costs(again), costs, atol=1e-9)


def test_more_segments_never_cost_more():
    costs = [found.cost for found in partitions(planted((0, 6, 15)))]
    assert all(a >= b for a, b in pairwise(costs))


def test_what_does_not_vary_counts_for_nothing():
    signatures = planted((0, 8))
    still = np.vstack([signatures, np.full(signatures.shape[1], 3.0)])
    found, expected = segment(standardise(still), 2), segment(standardise(signatures), 2)
    assert found.starts == expected.starts == (0, 8)
    assert found.criterion == pytest.approx(expected.criterion)


def test_too_few_layers_are_told():
    with pytest.raises(ValueError, match="3 layers cannot be divided into 4"):
        segment(np.zeros((1, 3)), 4)
