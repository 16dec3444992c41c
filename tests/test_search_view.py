"""What is shown of a search: against means, intervals and sets that are found here again."""

import json

import numpy as np
import pytest
import scipy
import xarray as xr
from searches import finished, planted_search, unfinished

from recipes.views import as_text, draw, table
from robustness.files.kinds.searches import NOT_RACED
from robustness.files.netcdf import save


@pytest.fixture(scope="module")
def search() -> xr.Dataset:
    return finished(
        planted_search((3, 0.5, 0.21, 0.2, 0.4, 2), texts=("stories", "news"), noise=0.5)
    )


def tables(dataset: xr.Dataset, **options) -> dict[str, list[dict]]:
    return {each.title: each.rows() for each in table(dataset, **options).tables}


def chosen_rows(dataset: xr.Dataset, name: str, method: int, step: int, part: str) -> np.ndarray:
    candidate = list(dataset["candidate"].values).index(dataset["chosen"].values[method, step])
    return dataset[name].values[candidate, dataset["part"].values == part].astype(float)


@pytest.mark.parametrize(("method", "name"), [(0, "pairwise"), (1, "greedy")])
def test_a_path_has_the_held_out_means_with_intervals_by_document(search, method, name):
    rows = tables(search)[f"{name}, on the held-out text"]
    assert [row["step"] for row in rows] == [1, 2, 3]
    clean = search["clean_loss"].values[search["part"].values == "held-out"].astype(float)
    for step, row in enumerate(rows):
        kl = chosen_rows(search, "kl", method, step, "held-out")
        rise = chosen_rows(search, "loss", method, step, "held-out") - clean
        for values, heading in ((kl, "KL"), (rise, "rise of the loss")):
            # Documents of two sequences each, one after the other.
            means = values.reshape(-1, 2).mean(1)
            low, high = scipy.stats.t.interval(
                0.95, len(means) - 1, means.mean(), scipy.stats.sem(means)
            )
            assert row[heading] == pytest.approx(means.mean(), abs=1e-6)
            assert row[f"{heading} low"] == pytest.approx(low, abs=1e-5)
            assert row[f"{heading} high"] == pytest.approx(high, abs=1e-5)
        score = chosen_rows(search, "kl", method, step, "search").mean()
        assert row["search score"] == pytest.approx(score, abs=1e-6)
        assert row["optimism"] == pytest.approx(kl.mean() - score, abs=1e-6)
        assert len(row["removed"].split()) == step + 1
        assert (row["parameters"], row["of all"]) == (9000 - 1000 * step, 0.9 - 0.1 * step)
        assert row["KV bytes"] == 64 * (5 - step)


def test_the_optimism_of_a_loss_is_of_its_rise():
    dataset = planted_search(objective="loss")
    row = tables(dataset)["pairwise, on the held-out text"][1]
    assert row["optimism"] == pytest.approx(row["rise of the loss"] - row["search score"])
    searched = dataset["part"].values == "search"
    rise = chosen_rows(dataset, "loss", 0, 1, "search") - dataset["clean_loss"].values[searched]
    assert row["search score"] == pytest.approx(rise.mean(), abs=1e-6)


def test_ties_and_what_the_search_took_are_named(search):
    rows = tables(search)["pairwise, on the held-out text"]
    for step, row in enumerate(rows):
        tied = search["standing"].values[0, step] == 2
        expected = list(search["removed"].values[tied])
        assert row["tied"] == tied.sum() and row["tied with"] == "; ".join(expected)
        assert row["candidates"] == (6, 15, 20)[step]
    assert any(row["tied"] for row in rows)
    apart = search.copy(deep=True)
    apart["standing"].values[0, 1, np.flatnonzero(apart["size"] == 2)[-5:]] = NOT_RACED
    assert tables(apart)["pairwise, on the held-out text"][1]["candidates"] == 10
    took = tables(search)["greedy, what the search took"][0]
    assert (took["tokens read"], took["tokens in full"]) == (4000, 12000)
    assert took["saved"] == pytest.approx(2 / 3)


def test_healing_stability_texts_and_speed_have_a_table_each(search):
    shown = tables(search)
    healed = shown["healing without training, on the held-out text"]
    best = shown["pairwise, on the held-out text"][-1]
    assert [row["healing"] for row in healed] == ["cut", "scalar"]
    assert healed[0]["KL low"] == best["KL low"]
    title = "share of resampled documents with the unit in the best set"
    for method, heading in enumerate((f"pairwise, {title}", f"greedy, {title}, lower bounds")):
        for step in (1, 2, 3):
            expected = search["probability"].values[method, step - 1]
            found = {row["unit"]: row[f"of {step}"] for row in shown[heading]}
            for unit, share in zip(search["unit"].values, expected, strict=True):
                assert found.get(unit, 0) == share
        assert all(max(row["of 1"], row["of 2"], row["of 3"]) > 0 for row in shown[heading])
    texts = shown["rank correlation of texts, and what each removes"]
    between = search["rank_correlation"].sel(step=2, text="stories", text_to="news").item()
    assert texts[1]["stories and news"] == between
    assert len(texts[1]["news removes"].split()) == 2
    times = shown["milliseconds a token, median of repetitions"]
    assert times[1]["decode"] == pytest.approx(2.2)
    assert (times[0]["prefill lowest"], times[0]["prefill highest"]) == (3.0, 3.4)


def test_without_a_held_out_part_the_searched_text_is_named():
    dataset = planted_search(held=0)
    row = tables(dataset)["pairwise, on the searched text"][0]
    assert row["KL"] == pytest.approx(row["search score"], abs=1e-6)
    notes = "\n".join(table(dataset).notes)
    assert "optimism" not in row and "optimism" not in notes
    assert "nothing is held out: means and intervals are of the text that sets were" in notes
    held = table(planted_search())
    assert "optimism: held-out" in "\n".join(held.notes) and "nothing is" not in str(held.notes)


@pytest.mark.parametrize(("documents", "held", "warned"), [
    (40, 4, True), (40, 9, True), (40, 10, False), (9, 0, True), (10, 0, False),
])  # fmt: skip
def test_intervals_are_doubted_by_the_documents_that_they_are_of(documents, held, warned):
    notes = table(planted_search(sizes=(1,), documents=documents, held=held)).notes
    doubts = [note for note in notes if "unreliable" in note]
    assert bool(doubts) == warned
    assert all(("10 held-out documents" in note) == bool(held) for note in doubts)


def test_without_a_held_out_part_all_sizes_are_compared_on_the_same_sequences():
    dataset = planted_search(held=0)
    first = dataset["chosen"].values[0, 0]
    dataset["kl"].loc[first, 10:] = np.nan
    rows = tables(dataset)["pairwise, on the searched text"]
    last = chosen_rows(dataset, "kl", 0, 2, "search")
    assert rows[2]["KL"] == pytest.approx(last[:10].mean(), abs=1e-6)
    assert rows[2]["search score"] == pytest.approx(last.mean(), abs=1e-6)


def test_sequences_that_a_race_did_not_need_have_no_part():
    dataset = planted_search()
    rest = np.arange(12, 24)
    for name in ("kl", "loss", "agreement"):
        dataset[name][:, rest] = np.nan
    dataset["clean_loss"][rest] = np.nan
    row = tables(dataset)["greedy, on the held-out text"][2]
    score = chosen_rows(dataset, "kl", 1, 2, "search")[:12].mean()
    assert row["search score"] == pytest.approx(score, abs=1e-6)
    assert "20 sequences of 10 documents" in table(dataset).notes[1]
    assert "nan" not in as_text(table(dataset))


def test_an_unfinished_search_says_so_and_shows_its_candidates(tmp_path, run):
    save(unfinished(planted_search()), tmp_path / "search.partial.nc")
    code, out, _ = run("show", tmp_path / "search.partial.nc")
    assert code == 0 and "unfinished: the same command goes on from here" in out
    assert "20 of 41 candidates, by kl, each on its sequences" in out
    code, out, err = run("show", tmp_path)
    assert (code, "unfinished" in out) == (0, True), err
    code, _, err = run("plot", tmp_path / "search.partial.nc")
    assert code == 1 and "the search is unfinished, and has no figure" in err


def test_a_search_has_forms_for_machines_and_differences(tmp_path, run, search):
    save(search, tmp_path / "search.nc")
    code, out, _ = run("show", tmp_path / "search.nc", "--json")
    first = json.loads(out)["tables"][0]
    assert code == 0 and first["units"]["KL"] == "nat" and first["rows"][0]["removed"] in "23"
    code, out, _ = run("show", tmp_path / "search.nc", "--bootstrap", "--csv")
    assert code == 0 and "KL low" in out.splitlines()[0]
    code, out, err = run("show", tmp_path / "search.nc", "--minus", "clean")
    assert code == 0 and "41 candidates, by loss" in out, err


def test_a_frontier_has_the_means_of_the_table_and_the_parameters(search):
    figure = draw(search)
    (kl, loss), heats = figure.axes[:2], figure.axes[2:4]
    rows = tables(search)["greedy, on the held-out text"]
    line = kl.lines[1]
    np.testing.assert_array_equal(line.get_xdata(), [9000, 8000, 7000])
    np.testing.assert_allclose(line.get_ydata(), [row["KL"] for row in rows], rtol=1e-5)
    np.testing.assert_allclose(
        loss.lines[0].get_ydata(),
        [row["rise of the loss"] for row in tables(search)["pairwise, on the held-out text"]],
        rtol=1e-5,
    )
    shares = search["probability"].values[1].T
    np.testing.assert_allclose(heats[1].images[0].get_array(), shares)
    titles = [axis.get_title() for axis in heats]
    assert titles == ["pairwise: stability", "greedy: stability, lower bounds"]
    assert [text.get_text() for text in kl.get_legend().get_texts()] == [
        "pairwise", "greedy", "clean model",
    ]  # fmt: skip
