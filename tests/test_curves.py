"""The shape of curves, against scipy and by hand."""

import numpy as np
import pytest
import scipy.stats
import xarray as xr

from recipes.evidence.curves import (
    change,
    part,
    place_of_largest,
    position,
    rank_correlation,
    rank_correlation_of_models,
)
from recipes.evidence.files import Absent
from robustness.files.labels import layer_coords


def curves(values, dim="layer"):
    values = np.atleast_2d(values)
    coords = layer_coords(values.shape[1]) if dim == "layer" else {"depth": range(values.shape[1])}
    return xr.DataArray(values, dims=("draw", dim), coords=coords)


def test_rank_correlation_is_scipys_for_every_draw_with_ties_and_without_what_is_missing():
    values = np.random.default_rng(0).integers(0, 6, (20, 12)).astype(float)
    values[:, -1] = np.nan
    found = rank_correlation(curves(values))
    for row, value in zip(values, found):
        expected = scipy.stats.spearmanr(row[:-1], np.arange(11)).statistic
        assert float(value) == pytest.approx(expected)
    with pytest.raises(Absent, match="2 points have no rank correlation"):
        rank_correlation(curves([[1.0, 2.0]]))


def test_the_place_of_the_largest_is_relative_and_unknown_where_a_point_is():
    found = place_of_largest(curves([[1, 5, 2, 0, 0], [0, 0, 0, 0, 3], [1, 5, np.nan, 0, 0]]))
    assert found.values[:2].tolist() == [0.25, 1.0] and np.isnan(found[2])
    assert np.isnan(place_of_largest(curves([1, np.inf, 2])).item())


def test_a_change_takes_two_points():
    assert change(curves([5.0, 1, 4, 7, 9]), 0.75, 1).item() == 2
    with pytest.raises(Absent, match="of 3 places along layer one is from 75% on"):
        change(curves([1.0, 2, 3]), 0.75, 1)
    assert place_of_largest(curves([1, 2, 9, 3, 0], "depth")).item() == 0.5


def test_a_part_of_a_curve_keeps_both_ends():
    chosen = part(curves(np.arange(11.0)), 0.25, 0.5)
    assert chosen["layer"].values.tolist() == [3, 4, 5]
    assert position(part(curves(np.arange(5.0), "depth"), 0.5, 1)).tolist() == [0.5, 0.75, 1.0]
    with pytest.raises(Absent, match="of 3 places along layer none is between 60% and 90%"):
        part(curves([0.0, 1, 2]), 0.6, 0.9)


def test_over_models_few_say_little():
    found, low, high = rank_correlation_of_models([1, 2, 3, 5, 4, 6, 7, 8], range(8))
    assert found == pytest.approx(scipy.stats.spearmanr([1, 2, 3, 5, 4, 6, 7, 8], range(8))[0])
    assert low > 0.8
    _, low, high = rank_correlation_of_models([1, 3, 2, 4], range(4))
    assert low < 0 < high
    with pytest.raises(Absent, match=r"3 models.*4 are needed"):
        rank_correlation_of_models([1, 2, 3], range(3))
    with pytest.raises(Absent, match="do not differ"):
        rank_correlation_of_models([1, 2, 3, 4], [12] * 4)


@pytest.mark.slow
def test_the_interval_over_models_covers_in_95_of_100():
    """Against simulation: ranks of a normal pair whose correlation is known."""
    random = np.random.default_rng(1)
    truth = 6 / np.pi * np.arcsin(0.6 / 2)
    inside = 0
    for _ in range(400):
        x, y = random.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 16).T
        _, low, high = rank_correlation_of_models(x, y)
        inside += low <= truth <= high
    assert 0.91 <= inside / 400 <= 0.99
