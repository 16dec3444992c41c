"""Intervals of paired proportions are those of the literature, and of the test that they invert."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats
from scipy.optimize import minimize_scalar

from robustness.statistics.paired_proportions import paired_proportions, score_interval


def test_the_interval_is_the_published_one():
    # Fagerland, Lydersen and Laake 2014, Statistics in Medicine 33, tables II and V: airway
    # hyper-responsiveness before and after stem cell transplantation, 1, 1, 7 and 12 children.
    assert score_interval(7, 1, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


def rejected(difference, lost, gained, items):
    """Whether a score test rejects a difference, its likelihood maximised by search."""

    def less_likely(loss):
        gain, rest = loss + difference, 1 - 2 * loss - difference
        counts = np.array([lost, gained, items - lost - gained])
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(counts > 0, counts * np.log([loss, gain, rest]), 0)
        return -terms.sum()

    low, high = max(0, -difference), (1 - difference) / 2
    loss = minimize_scalar(less_likely, bounds=(low, high), options={"xatol": 1e-12}).x
    variance = (2 * loss + difference - difference**2) / items
    estimate = (gained - lost) / items
    return bool(abs(estimate - difference) > stats.norm.ppf(0.975) * np.sqrt(variance))


@pytest.mark.parametrize(
    ("lost", "gained", "items"), [(7, 1, 21), (3, 3, 40), (0, 4, 9), (25, 60, 400), (1, 0, 1000)]
)
def test_the_interval_holds_what_the_score_test_does_not_reject(lost, gained, items):
    low, high = score_interval(lost, gained, items)
    inside, outside = 1e-4 * (high - low), -1e-4 * (high - low)
    for step, expected in ((inside, False), (outside, True)):
        assert rejected(low + step, lost, gained, items) == expected
        assert rejected(high - step, lost, gained, items) == expected


@pytest.mark.parametrize("items", [1, 4, 100])
def test_the_interval_is_wide_where_nothing_or_everything_changed(items):
    bound = stats.norm.ppf(0.975) ** 2
    assert score_interval(0, 0, items) == pytest.approx(
        (-bound / (items + bound), bound / (items + bound))
    )
    low, high = score_interval(0, items, items)
    assert high == 1 and -1 < low < 1
    assert score_interval(items, 0, items) == pytest.approx((-high, -low))


def test_items_are_counted_in_pairs():
    nan = np.nan
    before = xr.DataArray([1.0, 1, 1, 0, 0, nan], dims="item")
    after = xr.DataArray([[1.0, 0, 0, 1, 0, 1], [nan] * 6], dims=("schedule", "item"))
    found = paired_proportions(before, after)
    assert found.lost.values.tolist() == [2, 0] and found.gained.values.tolist() == [1, 0]
    assert found["items"].values.tolist() == [5, 0]
    for name, value in (("before", 0.6), ("after", 0.4), ("difference", -0.2)):
        np.testing.assert_allclose(found[name], [value, nan], atol=1e-12)
    np.testing.assert_allclose(found.low, [score_interval(2, 1, 5)[0], nan])
