import numpy as np
import pytest
import xarray as xr
from oracles.working_model import effective_documents_of_matrices
from test_execution import corpus

from robustness.errors import Refusal
from robustness.files import netcdf
from robustness.files.metrics import METRICS
from robustness.schedules import clean, swap
from robustness.statistics import stopping
from robustness.statistics.stopping import FEWEST_DOCUMENTS, is_enough, relative_error
from robustness.sweeps import sweep

BATCH = 24
SEQUENCES = 120
BOUNDS = (0.2, 0.0423, 0.038)
"""Relative standard errors that the tiny model reaches on so many sequences, one after another."""


def planted(values, documents, schedule=None):
    dataset = xr.Dataset(
        {"kl": (("intervention", "layer", "sequence"), values)},
        coords={"document": ("sequence", documents)},
    )
    if schedule is not None:
        dataset = dataset.assign_coords(schedule=(("intervention", "layer"), schedule))
    return dataset


def by_hand(values, documents):
    """The largest relative error, document by document in plain Python."""
    worst = 0.0
    for row in values.reshape(-1, values.shape[-1]).tolist():
        count = effective_documents_of_matrices(np.array(row), documents)
        mean = sum(row) / len(row)
        sums = {}
        for value, document in zip(row, documents, strict=True):
            sums[document] = sums.get(document, 0.0) + value - mean
        variance = count / (count - 1) * sum(each**2 for each in sums.values()) / len(row) ** 2
        worst = max(worst, variance**0.5 / mean)
    return worst


def test_it_is_the_largest_clustered_error_over_its_mean():
    random = np.random.default_rng(0)
    values = random.gamma(2, size=(2, 5, 60))
    documents = np.sort(random.integers(0, 20, 60))
    assert relative_error(planted(values, documents)) == pytest.approx(by_hand(values, documents))
    assert relative_error(planted(7 * values, documents)) == pytest.approx(
        by_hand(values, documents)
    )


def test_what_has_no_schedule_does_not_count_and_what_is_not_finite_is_never_enough():
    values = np.random.default_rng(0).gamma(2, size=(1, 3, 60))
    documents = np.arange(60)
    whole = relative_error(planted(values[:, :2], documents))
    values[0, 2] = np.nan
    schedule = np.array([["1-2", "0-2", ""]], dtype=object)
    assert relative_error(planted(values, documents, schedule)) == whole
    assert is_enough(planted(values, documents, schedule), 2 * whole)
    values[0, 1, 7] = np.nan
    assert np.isnan(relative_error(planted(values, documents, schedule)))
    assert not is_enough(planted(values, documents, schedule), 1e9)


def test_a_mean_that_is_rounding_does_not_keep_a_run_going():
    noise = np.random.default_rng(0).normal(scale=1e-9, size=(1, 1, 60))
    assert relative_error(planted(noise, np.arange(60))) < 1e-3


def test_too_few_documents_are_never_enough():
    values = np.ones((1, 1, 200))
    for documents in (FEWEST_DOCUMENTS - 1, FEWEST_DOCUMENTS):
        dataset = planted(values, np.arange(200) % documents)
        assert is_enough(dataset, 0.5) == (documents == FEWEST_DOCUMENTS)


@pytest.mark.parametrize("bound", [0, -0.1, float("nan"), float("inf"), -float("inf")])
def test_a_bound_that_is_none_is_refused(gpt2, bound):
    with pytest.raises(Refusal, match=r"`until_se` .*: the relative standard error to reach"):
        sweep(gpt2, corpus(), until_se=bound)


def test_a_bound_without_the_divergence_is_refused(gpt2):
    with pytest.raises(Refusal, match="needs the readout kl"):
        sweep(gpt2, corpus(), readouts=("loss",), until_se=0.1)


@pytest.fixture(scope="module")
def whole(gpt2):
    return sweep(gpt2, corpus(sequences=SEQUENCES), batch_tokens=BATCH)


def first_enough(whole, bound):
    """Where the run has to stop: the first batch's end at which it is enough."""
    for done in range(2, SEQUENCES + 1, 2):
        if is_enough(whole.isel(sequence=slice(0, done)), bound):
            return done
    raise AssertionError(f"{bound} is not reached: {relative_error(whole)}")


def assert_stopped(found, whole, bound):
    done = first_enough(whole, bound)
    assert done < SEQUENCES
    assert found.sizes["sequence"] == found.sequences == done
    for name in whole.data_vars.keys() - {"modal_share"}:
        assert found[name].values.tobytes() == whole[name].values[..., :done].tobytes(), name
    assert found.until_se == bound and found.until_se_reached < bound
    assert found.until_se_reached == relative_error(whole.isel(sequence=slice(0, done)))
    assert found.documents == len(np.unique(whole.document[:done])) >= FEWEST_DOCUMENTS
    assert (found.tokens, found.corpus_tokens) == (12 * done, 12 * SEQUENCES)
    assert found.corpus_sequences == SEQUENCES
    assert "sequences_done" not in found.attrs


@pytest.mark.slow
def test_a_run_stops_at_the_first_batch_at_which_it_knows_enough(gpt2, whole, tmp_path):
    path = tmp_path / "a.nc"
    stops = []
    for bound in BOUNDS:
        found = sweep(
            gpt2, corpus(sequences=SEQUENCES), batch_tokens=BATCH, until_se=bound, out=path,
            fresh=True,
        )  # fmt: skip
        assert_stopped(found, whole, bound)
        assert_stopped(netcdf.load(path), whole, bound)
        share = sweep(gpt2, corpus(sequences=SEQUENCES).take(found.sequences))
        np.testing.assert_array_equal(found.modal_share, share.modal_share)
        stops.append(found.sequences)
    assert stops == sorted(set(stops)), "the bounds tell nothing apart"
    assert [file.name for file in tmp_path.iterdir()] == ["a.nc"]


@pytest.mark.slow
def test_an_interrupted_run_stops_where_it_would_have(gpt2, whole, tmp_path):
    path, bound = tmp_path / "a.nc", BOUNDS[1]
    at = first_enough(whole, bound)
    for last in (at - 2, at):

        def stop(done, _total, last=last):
            if done == last:
                raise KeyboardInterrupt

        options = {"batch_tokens": BATCH, "until_se": bound, "out": path}
        with pytest.raises(KeyboardInterrupt):
            sweep(gpt2, corpus(sequences=SEQUENCES), progress=stop, fresh=True, **options)
        assert netcdf.load(tmp_path / "a.partial.nc").sequences_done == last
        assert_stopped(sweep(gpt2, corpus(sequences=SEQUENCES), **options), whole, bound)


@pytest.mark.slow
def test_a_run_that_stopped_is_not_made_again_and_goes_on_to_a_smaller_error(gpt2, whole, tmp_path):
    path, text = tmp_path / "a.nc", corpus(sequences=SEQUENCES)
    begun = []

    def run(bound):
        begun.clear()
        return sweep(
            gpt2, text, batch_tokens=BATCH, until_se=bound, out=path,
            progress=lambda done, _: begun.append(done),
        )  # fmt: skip

    first = run(BOUNDS[0])
    stamp = path.stat().st_mtime_ns
    xr.testing.assert_identical(run(BOUNDS[0]), first)
    assert path.stat().st_mtime_ns == stamp
    second = run(BOUNDS[2])
    assert begun[0] == first.sequences
    assert_stopped(second, whole, BOUNDS[2])
    share = sweep(gpt2, text.take(second.sequences))
    np.testing.assert_array_equal(second.modal_share, share.modal_share)
    with pytest.raises(Refusal, match=rf"made with until_se {BOUNDS[2]}, not {BOUNDS[0]}"):
        run(BOUNDS[0])
    last = run(None)
    assert begun[0] == second.sequences and last.sequences == SEQUENCES
    assert not {"until_se", "until_se_reached", "documents", "corpus_tokens"} & last.attrs.keys()
    for name in whole.data_vars:
        assert last[name].values.tobytes() == whole[name].values.tobytes()


@pytest.mark.slow
def test_a_run_that_was_interrupted_goes_on_to_a_smaller_error(gpt2, whole, tmp_path):
    path, text = tmp_path / "a.nc", corpus(sequences=SEQUENCES)

    def stop(done, _total):
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(gpt2, text, batch_tokens=BATCH, until_se=BOUNDS[0], out=path, progress=stop)
    found = sweep(gpt2, text, batch_tokens=BATCH, until_se=BOUNDS[1], out=path)
    assert_stopped(found, whole, BOUNDS[1])


@pytest.mark.slow
def test_a_bound_that_is_not_reached_takes_all_of_the_text_and_says_so(gpt2, whole, tmp_path):
    path, text = tmp_path / "a.nc", corpus(sequences=SEQUENCES)
    found = sweep(gpt2, text, batch_tokens=BATCH, until_se=1e-6, out=path)
    assert found.sequences == found.corpus_sequences == SEQUENCES
    assert found.until_se_reached == relative_error(whole) > found.until_se
    again = sweep(gpt2, text, batch_tokens=BATCH, until_se=1e-7, out=path)
    assert again.until_se == 1e-7 and again.sequences == SEQUENCES
    np.testing.assert_array_equal(again.modal_share, whole.modal_share)


@pytest.mark.slow
def test_a_stopped_file_is_still_one_line_from_the_layer_by_metric_tensor(gpt2, tmp_path):
    path = tmp_path / "a.nc"
    sweep(gpt2, corpus(sequences=SEQUENCES), batch_tokens=BATCH, until_se=BOUNDS[0], out=path)
    tensor = xr.load_dataset(path).mean("sequence").to_dataarray("metric")
    assert tensor.dims == ("metric", "intervention", "layer")
    assert set(xr.load_dataset(path).data_vars) <= METRICS.keys()


def test_free_schedules_stop_too_and_the_clean_one_does_not_keep_them_going(gpt2):
    schedules = [clean(4), swap(clean(4), 1)]
    found = sweep(
        gpt2, corpus(sequences=SEQUENCES), schedules=schedules, batch_tokens=BATCH, until_se=0.2
    )
    assert found.sequences < SEQUENCES and found.until_se_reached < 0.2


@pytest.mark.slow
def test_what_was_reached_is_told(run, llama, stories):
    words = ["sweep", llama, "--data", stories, "--context", 8, "--batch-tokens", 64, "--pack"]
    code, out, err = run(*words, "--until-se", 0.2)
    assert (code, out) == (0, "outputs/tiny-llama/sweep.nc\n"), err
    assert "stages: a relative standard error of 0.05" in err and "documents" in err
    code, _, err = run(*words, "--until-se", 0.0001)
    assert code == 0 and "all of the text did not reach 0.0001: a relative standard error of" in err
    assert run(*words, "--until-se", "nan")[0] == 2
    for text in ("0", "-1"):
        code, _, err = run(*words, "--until-se", text)
        assert code == 2 and f"--until-se {text}: the relative standard error" in err
    assert stopping.FEWEST_DOCUMENTS == 30
