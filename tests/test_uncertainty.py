import numpy as np
import pytest
import xarray as xr
from scipy import stats

from robustness.uncertainty import standard_error


def array(values, documents):
    return xr.DataArray(
        np.asarray(values, dtype=float),
        dims=("layer", "sequence") if np.ndim(values) == 2 else ("sequence",),
        coords={"document": ("sequence", documents)},
    )


def test_with_one_sequence_a_document_it_is_the_ordinary_standard_error():
    values = np.random.default_rng(0).normal(size=(3, 40))
    found = standard_error(array(values, np.arange(40)))
    np.testing.assert_allclose(found, stats.sem(values, axis=-1))


def test_copies_within_a_document_add_no_certainty():
    values = np.random.default_rng(0).normal(size=30)
    once = standard_error(array(values, np.arange(30)))
    thrice = standard_error(array(np.repeat(values, 3), np.repeat(np.arange(30), 3)))
    np.testing.assert_allclose(once, thrice)


def test_it_equals_the_spread_of_resampled_documents():
    """Against a second way: the bootstrap over documents, which are of different sizes."""
    random = np.random.default_rng(1)
    sizes = random.integers(1, 9, 300)
    documents = np.repeat(np.arange(300), sizes)
    values = random.normal(size=300)[documents] + random.normal(size=len(documents))
    means = []
    groups = [values[documents == document] for document in range(300)]
    for _ in range(2000):
        chosen = random.integers(0, 300, 300)
        means.append(np.concatenate([groups[i] for i in chosen]).mean())
    assert standard_error(array(values, documents)) == pytest.approx(np.std(means), rel=0.08)


def test_one_document_or_a_missing_value_gives_none():
    assert np.isnan(standard_error(array([1.0, 2.0], [4, 4])))
    found = standard_error(array([[1.0, 2.0, np.nan], [1.0, 2.0, 4.0]], [0, 1, 2]))
    assert np.isnan(found[0]) and np.isfinite(found[1])
