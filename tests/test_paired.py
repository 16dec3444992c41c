import re

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from recipes.views import as_text, draw, table
from robustness.errors import Refusal
from robustness.statistics.bootstrap_intervals import bootstrap, intervals
from robustness.statistics.paired import by_document, difference
from robustness.statistics.uncertainty import (
    effective_documents,
    standard_error,
)

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
            "source_sha256": "a",
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
    # The last that one of them has read may have been cut off.
    assert found.document.values.tolist() == list(range(5, 29))
    for at, document in enumerate(range(5, 29)):
        means = [
            data.kl.values[..., labels == document].mean(-1)
            for data, labels in ((one, DOCUMENTS), (other, other_documents))
        ]
        np.testing.assert_allclose(found.kl.isel(sequence=at), means[0] - means[1])


def test_a_run_less_a_longer_one_of_itself_is_nothing():
    """The second has read on in the document in which the first had stopped."""
    longer = run(DOCUMENTS)
    within = 1 + int(np.flatnonzero(np.diff(DOCUMENTS[20:]) == 0)[0]) + 20
    shorter = longer.isel(sequence=slice(0, within)).assign_attrs(corpus_sha256="y")
    assert shorter.document[-1] == longer.document[within], "it was cut"
    for found in (difference(shorter, longer), difference(longer, shorter)):
        np.testing.assert_allclose(found.kl, 0, atol=1e-12)
        assert found.document.values.tolist() == list(range(int(shorter.document[-1])))


def test_readouts_less_the_clean_models_are_taken_sequence_by_sequence():
    data = run(DOCUMENTS)
    data = data.assign(loss=data.kl + data.clean_loss)
    found = difference(data, "clean")
    assert list(found) == ["loss"], "KL is of the clean model already"
    np.testing.assert_allclose(found.loss, data.kl)
    assert found.attrs["difference"] == "less the clean model"


def test_layers_that_both_have_measured_are_compared():
    data = run(DOCUMENTS)
    found = difference(data.isel(layer=[0, 2]), data)
    assert found.layer.values.tolist() == [0, 2] and not found.kl.any()


def test_models_of_one_size_of_which_one_was_measured_at_some_layers_are_compared():
    some = run(DOCUMENTS, layers=2, layers_chosen=1).assign_attrs(layers="0, 1", config_sha256="z")
    assert difference(run(DOCUMENTS), some).layer.values.tolist() == [0, 1]


def test_the_title_counts_the_documents_that_both_have():
    data = run(DOCUMENTS, tokens=999, sequences=len(DOCUMENTS))
    found = difference(data, data.assign_attrs(corpus_sha256="y"))
    title = draw(found)._suptitle.get_text()
    assert "tokens" not in title and title.endswith("less one: 29 documents, 95 % bands")


def test_a_schedule_may_be_spelt_otherwise():
    data = run(DOCUMENTS).isel(layer=0, drop=True).rename(intervention="schedule")
    data = data.assign_coords(schedule=["0..2-4-5", "5-4-3-2-1-0"])
    for text in ("5-4-3-2-1-0", "5..0", "5..3-2..0"):
        assert difference(data, text).schedule.values.tolist() == ["0..2-4-5"]
    for text, problem in (("0..2-4..", "no file 0..2-4.., and no"), ("7", "no file 7, and")):
        with pytest.raises(Refusal, match=re.escape(problem)):
            difference(data, text)
    with pytest.raises(Refusal, match=r"nothing in the file that 0\.\.2-4-5 could be subtracted"):
        difference(data.isel(schedule=[0]), "0..2-4-5")


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
        ("skip-2", "no file skip-2, and no intervention of that name in this file: it has"),
        (run(DOCUMENTS, corpus="other"), "different texts: text and other"),
        (run(DOCUMENTS, measurement="lens"), "different measurements: sweep and lens"),
        (run(DOCUMENTS, layers=6, config_sha256="z"), "4 and 6 along layer.*stages compare"),
        (run(DOCUMENTS + 100, corpus_sha256="y"), "no document in common"),
        (
            run(DOCUMENTS, names=("reverse-2",)),
            "no intervention in common: drop, swap and reverse-2",
        ),
        (
            run(DOCUMENTS, source_sha256="b", corpus_sha256="y"),
            "different texts that are both called",
        ),
        (run(DOCUMENTS, corpus_sha256="y", windows="packed windows"), "different windows"),
        (run(DOCUMENTS, corpus_sha256="y").drop_vars(["kl", "clean_loss"]), "no variable over"),
    ],
)
def test_what_has_no_difference_is_refused(less, reason):
    with pytest.raises(Refusal, match=reason):
        difference(run(DOCUMENTS), less)


def test_a_single_intervention_has_nothing_to_be_taken_less():
    with pytest.raises(Refusal, match="nothing in the file that drop could be subtracted"):
        difference(run(DOCUMENTS, names=("drop",)), "drop")


def test_differences_are_shown_and_drawn():
    found = difference(run(DOCUMENTS), "drop")
    shown = as_text(table(found, by_bootstrap=True))
    assert "less drop: paired differences" in shown and "bootstrap interval" in shown
    low, high = bootstrap(found.kl.sel(intervention="swap", layer=0)).values
    assert f"[{low:.3f}, {high:.3f}]" in shown
    for by_bootstrap in (False, True):
        axis = draw(found, by_bootstrap=by_bootstrap).axes[0]
        assert axis.get_yscale() == "linear" and axis.get_ylabel() == "Δ KL [nat]"
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
    freedom = effective_documents(data.kl.sel(intervention="drop")) - 1
    half = stats.t.ppf(0.975, freedom) * error
    assert heights[False] == pytest.approx((float((mean - half).min()), float((mean + half).max())))


def _mean(values):
    return values.mean("sequence")


def test_bands_of_a_difference_are_where_its_intervals_are():
    """Below zero too, where a logarithmic axis would have them end."""
    found = difference(run(DOCUMENTS), "swap")
    assert (found.kl.mean("sequence") < 0).all()
    found["kl"][:, 0] += 3  # and some above
    band = draw(found, by_bootstrap=True).axes[0].collections[0].get_paths()[0].vertices
    ends = bootstrap(found.kl.sel(intervention="drop"))
    for layer in range(LAYERS):
        here = band[band[:, 0] == layer, 1]
        low, high = ends.isel(layer=layer).values
        assert (here.min(), here.max()) == pytest.approx((low, high))


def test_a_figure_without_bands_has_none_by_bootstrap():
    data = (
        run(DOCUMENTS)
        .rename(intervention="x")
        .drop_vars("clean_loss")
        .assign_attrs(measurement="cka", batch_sequences=8)
    )
    data = data.assign(
        cka=(("processing", "depth", "depth_to"), np.eye(3)[None]),
        cka_standard_error=(("processing", "depth", "depth_to"), np.zeros((1, 3, 3))),
    ).assign_coords(processing=["raw"], batch=[0, 1])
    draw(data)
    with pytest.raises(Refusal, match="no bands that a bootstrap could give"):
        draw(data, by_bootstrap=True)


@pytest.mark.slow
def test_of_few_documents_intervals_are_wider_and_the_table_says_so():
    """As many standard errors as Student's t has, and the bootstrap's percentiles as far out."""
    random = np.random.default_rng(0)
    repetitions, documents = 400, 6
    # A layer is a repetition: bands and intervals are of every layer on its own.
    data = run(np.arange(documents), names=("drop",), layers=repetitions)
    data["kl"][:] = random.exponential(size=(1, repetitions, documents)) + 1
    outline = draw(data).axes[0].collections[0].get_paths()[0].vertices
    bands = [outline[outline[:, 0] == layer, 1] for layer in range(repetitions)]
    assert all(band.min() < band.max() for band in bands), "an end of a band is not found"
    ends = bootstrap(data.kl, draws=199).values[0]
    covered = {
        "t": sum(band.min() <= 2 <= band.max() for band in bands),
        "bootstrap": sum(low <= 2 <= high for low, high in ends),
    }
    # Of exponential numbers, of which six say little, either end is missed more often than stated.
    assert all(count / repetitions > 0.84 for count in covered.values()), covered
    assert "unreliable" in as_text(table(data))
    assert "unreliable" not in as_text(table(run(DOCUMENTS)))


def test_the_bootstrap_is_scipys_on_documents_of_one_sequence():
    values = run(np.arange(40)).kl
    found = bootstrap(values, seed=3)
    quantile = stats.t.ppf(0.975, 39) * np.sqrt(40 / 39)
    wider = stats.norm.cdf(quantile) - stats.norm.cdf(-quantile)
    for layer in range(LAYERS):
        one = values.sel(intervention="swap", layer=layer).values
        expected = stats.bootstrap(
            (one,),
            np.mean,
            n_resamples=999,
            rng=np.random.default_rng(3),
            batch=100,
            confidence_level=wider,
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
