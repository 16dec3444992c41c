"""Searches from end to end: they go on where they were stopped, take what is known, and refuse."""

import numpy as np
import pytest
import xarray as xr
from test_pruning_methods import opened, text

from robustness.errors import Refusal
from robustness.files import netcdf, output
from robustness.files.kinds.searches import CHOSEN, NOT_WEIGHED
from robustness.pruning import measuring
from robustness.pruning import search as searching
from robustness.pruning.record import CLEAN_LOSS, Record
from robustness.pruning.search import prune
from robustness.pruning.settings import PruningSettings
from robustness.runs.settings import RunOptions
from robustness.schedules import clean, drop, from_text, to_text
from robustness.sweeps import Shard, sweep
from robustness.text.corpus import Corpus

SETTINGS = {"remove": 2, "methods": ("greedy", "pairwise"), "finalists": 3, "level": 0.3}


def many() -> Corpus:
    """Documents enough for races."""
    return text(sequences=28, documents=28)


def search(corpus=None, out=None, fresh=False, tell=lambda line: None, **settings):
    settings = PruningSettings(**{**SETTINGS, **settings})
    options = RunOptions(out=out, fresh=fresh, batch_tokens=40, tell=tell)
    corpora = corpus if isinstance(corpus, list) else [corpus or many()]
    return prune(opened("gpt2"), corpora, settings, options)


@pytest.fixture(scope="module")
def whole():
    return search()


def assert_same_search(found, expected) -> None:
    xr.testing.assert_equal(found, expected)
    for name, variable in expected.variables.items():
        if variable.dtype.kind in "fi":
            assert found[name].values.tobytes() == variable.values.tobytes(), name


def test_as_many_states_go_together_when_a_search_goes_on():
    first = measuring.Measurer(opened("gpt2"), many(), RunOptions())
    goes_on = RunOptions(batch_tokens=first.batch_tokens)
    assert first.batch_tokens == 280 // measuring.LOOKS
    assert measuring.Measurer(opened("gpt2"), many(), goes_on).state_cap == first.state_cap


class Stop(Exception):
    pass


def stopping_after(requests: int):
    """Return the measuring of batches that fails when it has measured some."""
    measure, left = measuring.measure_in_portions, [requests]

    def counting(*arguments):
        if not left[0]:
            raise Stop
        left[0] -= 1
        return measure(*arguments)

    return counting


@pytest.mark.slow
def test_stopped_at_any_request_a_search_ends_with_the_same_numbers(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(output, "SAVING_SHARE", float("inf"))
    path, calls = tmp_path / "search.nc", 0
    while not path.exists():
        with monkeypatch.context() as patch:
            patch.setattr(measuring, "measure_in_portions", stopping_after(1))
            try:
                search(out=path)
            except Stop:
                calls += 1
    assert calls >= 8
    assert_same_search(netcdf.load(path), whole)
    assert [file.name for file in tmp_path.iterdir()] == ["search.nc"]


@pytest.mark.slow
def test_races_read_less_and_choose_among_what_they_read(whole):
    for method in ("greedy", "pairwise"):
        of_method = whole.sel(strategy=method)
        assert (of_method.tokens_read < of_method.tokens_in_full).all()
        for step in (1, 2):
            at = of_method.sel(step=step)
            standing = at.standing.values
            (chosen,) = np.flatnonzero(standing == CHOSEN)
            assert str(at.candidate.values[chosen]) == str(at.chosen.values)
            weighed = standing > NOT_WEIGHED
            assert (at["size"].values[weighed] <= step).all() and weighed.sum() >= 3
    measured = np.isfinite(whole.kl.values)
    rows = [slice(start, start + 4) for start in range(0, 28, 4)]
    for batch, sequences in enumerate(rows[:5]):
        counted = whole.measured.values[:, batch] == 1
        assert (measured[:, sequences].all(1) == counted).all()


@pytest.mark.slow
def test_tokens_are_those_that_a_method_alone_would_read(whole):
    alone = search(methods=("pairwise",))
    searched = (alone.part == "search").sum().item()
    in_search = np.isfinite(alone.kl.values[:, :searched]).sum() * 10
    assert alone.tokens_read.sum().item() == in_search
    distinct = alone.sizes["candidate"]
    assert alone.tokens_in_full.sum().item() == distinct * searched * 10
    for name in ("tokens_read", "tokens_in_full", "applications"):
        np.testing.assert_array_equal(alone[name].values[0], whole[name].sel(strategy="pairwise"))


def test_scores_are_kl_or_rises_of_the_loss_and_infinite_without_a_number():
    blank = xr.Dataset({CLEAN_LOSS: ("sequence", np.array([1.0, 2.0, 3.0]))})
    record = Record(blank, [slice(0, 2), slice(2, 3)], output.Output(None, "search"), 4)
    values = {"kl": [[0.5, np.nan]], "loss": [[1.5, np.inf]], "agreement": [[1.0, 1.0]]}
    known = {name: np.array(each) for name, each in values.items()}
    record.add([(0, 2)], 0, {**known, CLEAN_LOSS: np.array([1.0, 2.0])})
    assert record.scores([(0, 2)], slice(0, 2), "kl").tolist() == [[0.5, np.inf]]
    assert record.scores([(0, 2)], slice(0, 2), "loss").tolist() == [[0.5, np.inf]]
    assert record.missing([(0, 2), (1, 2)], 0) == [(1, 2)]
    assert record.missing([(0, 2)], 1) == [(0, 2)]


@pytest.mark.slow
def test_what_a_sweep_has_measured_is_not_measured_again(whole, tmp_path, monkeypatch):
    file, asked = tmp_path / "sweep.nc", []
    layers = opened("gpt2").layers
    singles = [drop(clean(layers), layer) for layer in range(layers)]
    sweep(opened("gpt2"), many(), ("drop", "swap"), batch_tokens=40, out=file)
    measure = measuring.Measurer.measure
    monkeypatch.setattr(
        measuring.Measurer,
        "measure",
        lambda self, schedules, rows: asked.extend(schedules) or measure(self, schedules, rows),
    )
    found = search(measured=(file,))
    assert not set(asked) & set(singles) and asked
    np.testing.assert_array_equal(found.chosen, whole.chosen)
    by_name = dict(zip(found.candidate.values, found.removed.values, strict=True))
    assert by_name["1..5"] == "0" and by_name["1-0-2..5"] == ""
    again = tmp_path / "search.nc"
    search(out=again)
    del asked[:]
    search(measured=(again,))
    assert not asked


@pytest.mark.slow
def test_healings_of_another_size_are_fitted_anew_to_numbers_that_are_known(tmp_path, monkeypatch):
    file, asked = tmp_path / "search.nc", []
    search(out=file, heal=True)
    measure = measuring.Measurer.measure
    monkeypatch.setattr(
        measuring.Measurer,
        "measure",
        lambda self, schedules, rows: asked.extend(schedules) or measure(self, schedules, rows),
    )
    found = search(measured=(file,), remove=1, heal=True)
    texts = found.healed.values.tolist()
    assert {to_text(schedule) for schedule in asked} == set(texts[1:])
    cut = from_text(texts[0], found.sizes["unit"])
    assert len(cut) == found.sizes["unit"] - 1
    # Maps of the first search, whose names may be those of other maps here, are left out.
    assert all("~" not in name or name in texts for name in found.candidate.values)
    del asked[:]
    search(measured=(file,))
    assert not asked


@pytest.mark.slow
def test_what_files_have_of_some_sequences_is_taken_for_those(whole, tmp_path):
    shard, early = tmp_path / "shard.nc", tmp_path / "early.nc"
    second = {"shard": Shard(2, 2), "batch_tokens": 40, "out": shard}
    sweep(opened("gpt2"), many(), ("drop",), **second)
    # It ends long before the searched part does, and goes on in the held-out one.
    reached = search(out=early, methods=("influence",), remove=1)
    assert 0 < np.isfinite(reached.clean_loss).sum() < 28
    found = search(measured=(shard, early))
    np.testing.assert_array_equal(found.chosen, whole.chosen)
    np.testing.assert_allclose(found.clean_loss, whole.clean_loss, atol=1e-12)
    ours, theirs = (each.kl.sel(candidate=whole.candidate) for each in (found, whole))
    both = np.isfinite(ours.values) & np.isfinite(theirs.values)
    assert both.sum() == np.isfinite(theirs.values).sum()
    np.testing.assert_allclose(ours.values[both], theirs.values[both], atol=1e-12)


@pytest.mark.slow
def test_files_of_other_texts_models_and_kinds_are_refused(tmp_path):
    file = tmp_path / "sweep.nc"
    sweep(opened("gpt2"), text(28, 28, seed=1), ("drop",), batch_tokens=40, out=file)
    with pytest.raises(Refusal, match="is of another text than this search"):
        search(measured=(file,))
    sweep(opened("gpt_neox"), many(), ("drop",), batch_tokens=40, out=file, fresh=True)
    with pytest.raises(Refusal, match="is of another model than this search"):
        search(measured=(file,))
    sweep(opened("gpt2"), many(), ("drop",), batch_tokens=40, out=file, fresh=True, readouts=["kl"])
    with pytest.raises(Refusal, match="lacks agreement: leave it out"):
        search(measured=(file,))
    file.write_bytes(b"text")
    with pytest.raises(Refusal):
        search(measured=(file,))
    with pytest.raises(Refusal):
        search(measured=(tmp_path / "none.nc",))


@pytest.mark.slow
def test_a_file_of_another_search_stays_as_it_is(tmp_path):
    path = tmp_path / "search.nc"
    search(out=path, methods=("influence",), remove=1)
    before = path.read_bytes()
    for change in ({"remove": 2}, {"objective": "loss"}, {"corpus": text(28, 28, seed=1)}):
        with pytest.raises(Refusal, match="choose another `out`"):
            search(out=path, **{"methods": ("influence",), "remove": 1, **change})
        assert path.read_bytes() == before
    said: list[str] = []
    search(out=path, methods=("influence",), remove=1, tell=said.append)
    assert path.read_bytes() == before and not said
    path.write_bytes(before[:1000])
    with pytest.raises(Refusal):
        search(out=path, methods=("influence",), remove=1)
    assert path.read_bytes() == before[:1000]


@pytest.mark.slow
def test_a_damaged_unfinished_search_is_refused_and_left(tmp_path, monkeypatch):
    monkeypatch.setattr(output, "SAVING_SHARE", float("inf"))
    path, partial_path = tmp_path / "search.nc", tmp_path / "search.partial.nc"
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "measure_in_portions", stopping_after(3))
        with pytest.raises(Stop):
            search(out=path)
    unfinished = netcdf.load(partial_path)
    names = unfinished.candidate.values.copy()
    names[1] = names[0]
    short = unfinished.isel(batch=slice(0, 2))
    for damaged in (
        unfinished.assign_coords(candidate=names),
        unfinished.assign_coords(candidate=["0..99", *names[1:]]),
        unfinished.assign_coords(candidate=["5-x", *names[1:]]),
        unfinished.drop_vars("measured"),
        unfinished.assign_attrs(requests_done="many"),
        short,
    ):
        partial_path.unlink()
        netcdf.save(damaged, partial_path)
        before = partial_path.read_bytes()
        with pytest.raises(Refusal) as refusal:
            search(out=path)
        assert "\n" not in str(refusal.value)
        assert partial_path.read_bytes() == before and not path.exists()


@pytest.mark.slow
def test_an_unfinished_search_goes_on_whatever_is_looked_for(whole, tmp_path, monkeypatch):
    """What is measured of a candidate does not depend on the target."""
    monkeypatch.setattr(output, "SAVING_SHARE", float("inf"))
    path = tmp_path / "search.nc"
    with pytest.raises(Refusal, match="ask for more than `until_kl`"):
        search(out=path, remove=None, until_kl=1e-6, methods=("pairwise",))
    asked = []
    measure = measuring.measure_in_portions
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "measure_in_portions", lambda *a: asked.append(a) or measure(*a))
        found = search(out=path, methods=("pairwise",))
        # All single units were measured on the first batches.
        assert all(len(prepared.schedules[0]) < 5 or rows.start for prepared, rows, *_ in asked)
    assert str(found.chosen.values[0, 0]) == str(
        whole.chosen.sel(strategy="pairwise", step=1).item()
    )
    with pytest.raises(Refusal, match="`measured` takes its numbers over"):
        search(out=path, remove=1)


@pytest.mark.slow
def test_a_search_that_stopped_behind_its_healings_goes_on_to_another_target(tmp_path, monkeypatch):
    path, settings = tmp_path / "search.nc", {"methods": ("pairwise",), "heal": True}
    whole, heal = search(remove=1, **settings), searching.measure_healed

    def stop(*arguments):
        heal(*arguments)
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(searching, "measure_healed", stop)
        with pytest.raises(Stop):
            search(out=path, **settings)
    partial = netcdf.load(tmp_path / "search.partial.nc")
    assert any("~" in name for name in partial.candidate.values)
    found = search(out=path, remove=1, **settings)
    xr.testing.assert_equal(found.healed, whole.healed)
    names = found.healed.values
    xr.testing.assert_equal(found.kl.sel(candidate=names), whole.kl.sel(candidate=names))
