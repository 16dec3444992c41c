import numpy as np
import pytest
import xarray as xr
from scipy import stats

from recipes.panels import draw
from recipes.tables import table
from robustness.difference import by_document, difference
from robustness.refusal import Refusal
from robustness.uncertainty import bootstrap, intervals, standard_error

LAYERS = 4


def run(documents, *, seed=0, names=("drop", "swap"), layers=LAYERS, **attrs):
    """Make the file of a sweep: what a document does to both interventions is common to them."""
    random = np.random.default_rng(seed)
    documents = np.asarray(documents)
    shared = np.random.default_rng(7).normal(size=documents.max() + 1)[documents]
    own = 0.1 * random.normal(size=(len(names), layers, len(documents)))
    kl = 5 + shared + own + np.arange(len(names))[:, None, None]
    return xr.Dataset(
        {
            "kl": (("intervention", "layer", "sequence"), kl, {"units": "nat", "long_name": "KL"}),
            "clean_loss": ("sequence", 3 + shared, {"units": "nat", "long_name": "loss"}),
            "nonfinite": (("intervention", "layer", "sequence"), np.zeros(kl.shape, np.int32)),
        },
        coords={
            "intervention": list(names),
            "layer": np.arange(layers),
            "sequence": np.arange(len(documents)),
            "document": ("sequence", documents),
        },
        attrs={
            "measurement": "sweep",
            "model": "one",
            "architecture": "A",
            "corpus": "text",
            "corpus_sha256": "x",
            "context": 16,
            **attrs,
        },
    )


DOCUMENTS = np.repeat(np.arange(30), np.random.default_rng(1).integers(1, 5, 30))


def test_an_intervention_less_another_is_taken_sequence_by_sequence():
    data = run(DOCUMENTS)
    found = difference(data, "drop")
    assert found.intervention.values.tolist() == ["swap"] and list(found) == ["kl"]
    expected = data.kl.sel(intervention="swap").values - data.kl.sel(intervention="drop").values
    np.testing.assert_allclose(found.kl.sel(intervention="swap"), expected)
    assert found.kl.attrs["units"] == "nat" and found.attrs["difference"] == "less drop"
    np.testing.assert_allclose(difference(data, "swap").kl.values, -found.kl.values)


def test_what_is_common_goes_out_of_the_standard_error():
    data = run(DOCUMENTS)
    alone = standard_error(data.kl)
    paired = standard_error(difference(data, "drop").kl)
    assert (paired < alone.sel(intervention="swap") / 3).all()


def test_two_runs_on_the_same_sequences_are_paired_by_sequence():
    one, other = run(DOCUMENTS), run(DOCUMENTS, seed=1, model="two")
    found = difference(one, other)
    np.testing.assert_allclose(found.kl.values, one.kl.values - other.kl.values)
    assert found.sizes["sequence"] == len(DOCUMENTS) and "clean_loss" in found
    assert found.attrs["difference"] == "less two"
    np.testing.assert_allclose(difference(one, one).kl.values, 0)


def test_two_runs_on_the_same_text_cut_otherwise_are_paired_by_document():
    other_documents = np.repeat(np.arange(5, 35), 2)
    one = run(DOCUMENTS)
    other = run(other_documents, seed=1, corpus_sha256="y", model="two")
    found = difference(one, other)
    assert found.document.values.tolist() == list(range(5, 30))
    for at, document in enumerate(range(5, 30)):
        means = [
            data.kl.values[..., labels == document].mean(-1)
            for data, labels in ((one, DOCUMENTS), (other, other_documents))
        ]
        np.testing.assert_allclose(found.kl.isel(sequence=at), means[0] - means[1])


def test_means_of_documents_are_those_by_hand():
    data = run([3, 3, 9, 3])
    found = by_document(data)
    assert found.document.values.tolist() == [3, 9]
    expected = data.kl.values[..., [0, 1, 3]].mean(-1)
    np.testing.assert_allclose(found.kl.isel(sequence=0), expected)


def test_a_layer_that_one_of_two_does_not_have_stays_missing():
    data = run(DOCUMENTS)
    data.kl[1, -1] = np.nan
    found = difference(data, "drop").kl.sel(intervention="swap")
    assert found.isel(layer=-1).isnull().all() and found.isel(layer=0).notnull().all()


@pytest.mark.parametrize(
    ("less", "reason"),
    [
        ("skip-2", "cannot be taken less 'skip-2': it has drop, swap"),
        (run(DOCUMENTS, corpus="other"), "different corpus: text and other"),
        (run(DOCUMENTS, measurement="lens"), "different measurement: sweep and lens"),
        (run(DOCUMENTS, layers=6), "4 and 6 along layer.*stages compare"),
        (run(DOCUMENTS + 100, corpus_sha256="y"), "no document in common"),
        (run(DOCUMENTS, names=("reverse-2",)), "nothing in common"),
    ],
)
def test_what_has_no_difference_is_refused(less, reason):
    with pytest.raises(Refusal, match=reason):
        difference(run(DOCUMENTS), less)


def test_a_single_intervention_has_nothing_to_be_taken_less():
    with pytest.raises(Refusal, match="it has drop"):
        difference(run(DOCUMENTS, names=("drop",)), "drop")


def test_differences_are_shown_and_drawn():
    found = difference(run(DOCUMENTS), "drop")
    shown = table(found, by_bootstrap=True)
    assert "less drop: paired differences" in shown and "bootstrap interval" in shown
    low, high = bootstrap(found.kl.sel(intervention="swap", layer=0)).values
    assert f"[{low:.3f}, {high:.3f}]" in shown
    for by_bootstrap in (False, True):
        axis = draw(found, by_bootstrap=by_bootstrap).axes[0]
        assert axis.get_yscale() == "linear" and "less drop" in axis.get_ylabel()
        line, zero = axis.lines
        np.testing.assert_allclose(line.get_ydata(), found.kl.mean("sequence")[0])
        assert set(zero.get_ydata()) == {0}


def test_bands_are_standard_errors_or_bootstrap_intervals():
    data = run(DOCUMENTS)
    heights = {}
    for by_bootstrap in (False, True):
        band = draw(data, by_bootstrap=by_bootstrap).axes[0].collections[0].get_paths()[0]
        heights[by_bootstrap] = band.vertices[:, 1].min(), band.vertices[:, 1].max()
    ends = bootstrap(data.kl.sel(intervention="drop"))
    assert heights[True] == pytest.approx((float(ends.min()), float(ends.max())))
    mean, error = (f(data.kl.sel(intervention="drop")) for f in (_mean, standard_error))
    assert heights[False] == pytest.approx(
        (float((mean - 1.96 * error).min()), float((mean + 1.96 * error).max()))
    )


def _mean(values):
    return values.mean("sequence")


def test_the_bootstrap_is_scipys_on_documents_of_one_sequence():
    values = run(np.arange(40)).kl
    found = bootstrap(values, seed=3)
    for layer in range(LAYERS):
        one = values.sel(intervention="swap", layer=layer).values
        expected = stats.bootstrap(
            (one,), np.mean, n_resamples=999, rng=np.random.default_rng(3), batch=100
        ).confidence_interval
        ours = found.sel(intervention="swap", layer=layer)
        np.testing.assert_allclose(ours, [expected.low, expected.high], rtol=1e-9)


def test_documents_are_drawn_whole_by_the_bootstrap():
    values = run(np.arange(30)).kl
    thrice = values.isel(sequence=np.repeat(np.arange(30), 3))
    np.testing.assert_allclose(bootstrap(thrice), bootstrap(values))


def test_without_spread_or_documents_or_values_the_bootstrap_is_honest():
    alike = xr.zeros_like(run(DOCUMENTS).kl) + 2
    np.testing.assert_allclose(bootstrap(alike), 2)
    assert bootstrap(run([4, 4]).kl).isnull().all()
    holey = run(DOCUMENTS).kl
    holey[0, 0, 0] = np.nan
    found = bootstrap(holey)
    assert found[0, 0].isnull().all() and found[0, 1].notnull().all()


def test_intervals_of_a_dataset_have_means_and_ends():
    data = run(DOCUMENTS)
    found = intervals(data)
    assert set(found) == {
        f"{n}{end}" for n in ("kl", "clean_loss") for end in ("", "_low", "_high")
    }
    np.testing.assert_allclose(found.kl, data.kl.mean("sequence"))
    assert (found.kl_low < found.kl).all() and (found.kl < found.kl_high).all()
    assert found.kl_low.attrs["units"] == "nat" and "sequence" not in found.dims
