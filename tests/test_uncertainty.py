import numpy as np
import pytest
import xarray as xr
from oracles.working_model import effective_documents_of_matrices
from scipy import stats

from robustness.statistics.bootstrap_intervals import bootstrap
from robustness.statistics.uncertainty import (
    band,
    bootstrap_means,
    effective_documents,
    interval,
    standard_error,
)


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


def test_draw_0_is_the_mean_and_the_others_spread_as_the_standard_error():
    random = np.random.default_rng(2)
    documents = np.repeat(np.arange(60), random.integers(1, 6, 60))
    values = random.normal(size=(3, 60))[:, documents] + random.normal(size=(3, len(documents)))
    data = array(values, documents)
    found = bootstrap_means(data, draws=4000)
    assert found.dims == ("draw", "layer") and found.sizes["draw"] == 4001
    np.testing.assert_allclose(found.isel(draw=0), values.mean(1))
    spread = found.isel(draw=slice(1, None)).std("draw")
    np.testing.assert_allclose(spread, standard_error(data), rtol=0.06)


def test_draws_equal_means_of_documents_drawn_by_hand():
    random = np.random.default_rng(3)
    documents = np.array([5, 5, 7, 9, 9, 9])
    values = random.normal(size=6)
    found = bootstrap_means(array(values, documents), draws=5, seed=11)
    counts = np.random.default_rng(11).multinomial(3, [1 / 3] * 3, 5)
    for draw, times in enumerate(counts):
        taken = np.concatenate(
            [np.tile(values[documents == name], count) for name, count in zip((5, 7, 9), times)]
        )
        assert float(found[draw + 1]) == pytest.approx(taken.mean())


def test_two_arrays_over_the_same_documents_are_drawn_alike():
    values = array(np.random.default_rng(4).normal(size=(2, 30)), np.arange(30) // 3)
    difference = bootstrap_means(values + 1) - bootstrap_means(values)
    np.testing.assert_allclose(difference, 1)


def test_draws_of_one_document_or_of_missing_values_are_missing():
    found = bootstrap_means(array([1.0, 3.0], [4, 4]), draws=3)
    assert float(found[0]) == 2 and found[1:].isnull().all()
    found = bootstrap_means(array([[1.0, np.nan], [1.0, 2.0]], [0, 1]), draws=3)
    assert found.isel(layer=0).isnull().all() and found.isel(layer=1).notnull().all()


def test_items_are_drawn_one_by_one_unless_they_have_documents():
    items = xr.DataArray(np.arange(40.0), dims="item")
    grouped = items.assign_coords(document=("item", np.arange(40) // 10))
    alone, together = (bootstrap_means(each, "item")[1:].std() for each in (items, grouped))
    assert float(alone) == pytest.approx(float(items.std()) / 40**0.5, rel=0.1)
    assert float(together) > 2 * float(alone)


@pytest.mark.slow
@pytest.mark.parametrize("documents", [4, 10, 40])
def test_intervals_of_few_documents_cover_as_often_as_they_say(documents):
    """Plain percentiles of four cover in about 78 of 100 cases, of ten in 90."""
    random, covered, plain = np.random.default_rng(5), 0, 0
    for _ in range(400):
        found = bootstrap_means(
            array(random.normal(size=documents), np.arange(documents)), draws=999
        )
        low, high = interval(found)
        covered += low < 0 < high
        low, high = interval(found.drop_vars("drawn_from"))
        plain += low < 0 < high
    assert covered / 400 > {4: 0.84, 10: 0.92, 40: 0.92}[documents]
    assert covered >= plain


@pytest.mark.slow
def test_intervals_are_students_for_means_of_normal_values():
    values = np.random.default_rng(6).normal(size=200)
    low, high = interval(bootstrap_means(array(values, np.arange(200)), draws=20_000))
    expected = stats.t.interval(0.95, 199, values.mean(), stats.sem(values))
    np.testing.assert_allclose([low, high], expected, atol=0.005)


def test_one_document_has_no_interval():
    assert np.isnan(interval(bootstrap_means(array([1.0, 2.0], [3, 3])))).all()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shared", [0.0, 1.0, 5.0])
def test_effective_documents_equal_those_of_the_matrices_written_out(seed, shared):
    random = np.random.default_rng(seed)
    documents = np.repeat(np.arange(9), random.integers(1, 12, 9))
    values = shared * random.normal(size=9)[documents] + random.normal(size=len(documents))
    shuffled = random.permutation(len(documents))
    found = effective_documents(array(values[shuffled], documents[shuffled]))
    assert float(found) == pytest.approx(
        effective_documents_of_matrices(values, documents), rel=1e-9
    )


def test_documents_of_equal_size_count_in_full_and_one_that_outweighs_the_rest_hardly():
    random = np.random.default_rng(0)
    equal = effective_documents(array(random.normal(size=(4, 60)), np.arange(60) // 5))
    np.testing.assert_allclose(equal, 12)
    sizes = np.array([400, *[1] * 11])
    documents = np.repeat(np.arange(12), sizes)
    values = random.normal(size=12)[documents] + 0.1 * random.normal(size=sizes.sum())
    assert 1 < float(effective_documents(array(values, documents))) < 2.5


@pytest.mark.parametrize("factor", [-3.0, 1e-6, 1e6])
def test_effective_documents_know_no_unit_and_no_names(factor):
    random = np.random.default_rng(1)
    documents = np.repeat(np.arange(8), [1, 2, 3, 4, 9, 9, 1, 30])
    values = random.normal(size=8)[documents] + random.normal(size=len(documents))
    found = effective_documents(array(values, documents))
    other = effective_documents(array(factor * values + 7 * factor, 100 - documents))
    assert float(other) == pytest.approx(float(found), rel=1e-6)


def simulated(random, documents, shared, draws):
    """Values of mean 0 whose documents differ, (draw, sequence)."""
    _, sizes = np.unique(documents, return_counts=True)
    own = random.normal(size=(draws, len(documents)))
    return (
        shared**0.5 * random.normal(size=(draws, len(sizes)))[:, documents]
        + (1 - shared) ** 0.5 * own
    )


@pytest.mark.parametrize("count", [8, 15, 30])
@pytest.mark.parametrize("shared", [0.1, 0.6])
def test_bands_of_unequal_documents_cover_as_often_as_they_say(count, shared):
    random, covered, plain, cases = np.random.default_rng(count), 0, 0, 0
    for _ in range(40):
        sizes = np.maximum(1, random.lognormal(1.5, 0.8, count).round()).astype(int)
        documents = np.repeat(np.arange(count), sizes)
        values = array(simulated(random, documents, shared, 100), documents)
        low, high = band(values).transpose("end", "layer").values
        covered += int(((low < 0) & (high > 0)).sum())
        sums = np.stack([values.values[:, documents == each].sum(1) for each in range(count)], 1)
        residual = sums - sizes * values.values.mean(1, keepdims=True)
        error = np.sqrt((residual**2).sum(1) * count / (count - 1)) / sizes.sum()
        plain += int((abs(values.values.mean(1)) < stats.t.ppf(0.975, count - 1) * error).sum())
        cases += 100
    assert 0.94 <= covered / cases <= 0.985
    assert plain / cases < covered / cases, "as many degrees of freedom as documents are too many"


@pytest.mark.slow
def test_bootstraps_of_unequal_documents_cover_more_often_than_by_their_number():
    random, found = np.random.default_rng(3), {"interval": 0, "bootstrap": 0}
    for _ in range(200):
        sizes = np.maximum(1, random.lognormal(1.5, 0.8, 12).round()).astype(int)
        documents = np.repeat(np.arange(12), sizes)
        values = array(simulated(random, documents, 0.3, 1)[0], documents)
        low, high = interval(bootstrap_means(values, draws=400))
        found["interval"] += low < 0 < high
        low, high = bootstrap(values, draws=400).values
        found["bootstrap"] += low < 0 < high
    assert min(found.values()) / 200 >= 0.92, found
