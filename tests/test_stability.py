import numpy as np
import pytest
from searches import planted_search

from robustness.files.kinds.searches import CHOSEN, NOT_WEIGHED
from robustness.files.netcdf import load, save
from robustness.pruning.scores import held_out, rises, scores, searched
from robustness.pruning.stability import chosen_by_text, probability, rank_correlation


def at(values, method: str, step: int, **labels):
    """Values of a method at a step; xarray takes a keyword `method` for its own."""
    return values.sel({"method": method, "step": step, **labels})


def resampled(dataset, method: str, step: int, draws: int = 3000) -> dict[str, float]:
    """How often each unit is in the best set, document by document and draw by draw."""
    random = np.random.default_rng(99)
    search = dataset.isel(sequence=dataset["part"].values == "search")
    values, document = scores(search).values, search["document"].values
    weighed = at(dataset["standing"], method, step).values != NOT_WEIGHED
    rivals = [at for at in np.flatnonzero(weighed) if not np.isnan(values[at]).any()]
    counts = dict.fromkeys(map(str, dataset["unit"].values), 0)
    for _ in range(draws):
        drawn = random.choice(np.unique(document), len(np.unique(document)))
        rows = np.concatenate([np.flatnonzero(document == each) for each in drawn])
        best = min(rivals, key=lambda at: values[at, rows].mean())
        for unit in str(dataset["removed"].values[best]).split():
            counts[unit] += 1
    return {unit: count / draws for unit, count in counts.items()}


@pytest.mark.parametrize("objective", ["kl", "loss"])
def test_probabilities_are_those_of_documents_drawn_one_by_one(objective):
    dataset = planted_search((3, 0.5, 0.3, 0.28, 0.32, 2), noise=0.6, objective=objective)
    found = probability(dataset)
    for method, step in (("pairwise", 2), ("greedy", 1), ("greedy", 3)):
        for unit, share in resampled(dataset, method, step, 1000).items():
            ours = float(at(found, method, step, unit=unit))
            assert ours == pytest.approx(share, abs=0.08)
    spread = at(found, "pairwise", 2)
    assert ((spread > 0.05) & (spread < 0.95)).any()


def test_units_of_the_best_set_are_as_many_as_the_step():
    found = probability(planted_search(noise=0.6))
    np.testing.assert_allclose(found.sum("unit"), [[1, 2, 3]] * 2)


def test_a_block_that_is_always_best_has_probability_one():
    found = probability(planted_search(noise=0.01))
    assert at(found, "greedy", 1, unit="3") == 1


def test_a_candidate_that_was_not_measured_in_full_cannot_win():
    dataset = planted_search(noise=0.01)
    best = at(dataset["chosen"], "pairwise", 2).item()
    dataset["kl"].loc[best, 11] = np.nan
    found = at(probability(dataset), "pairwise", 2)
    assert float(found.sel(unit=["2", "3"]).sum()) < 2


def test_a_candidate_that_a_method_did_not_weigh_cannot_win_there():
    dataset = planted_search(noise=0.01)
    best = at(dataset["chosen"], "pairwise", 1).item()
    dataset["standing"].loc["greedy", 1, best] = NOT_WEIGHED
    assert float(at(probability(dataset), "pairwise", 1, unit="3")) == 1
    assert np.isnan(at(probability(dataset), "greedy", 1)).all()


def test_held_out_documents_are_not_drawn():
    dataset = planted_search(noise=0.3)
    changed = dataset.copy(deep=True)
    changed["kl"][:, changed["part"].values == "held-out"] = 100 * np.arange(8)
    assert probability(changed).identical(probability(dataset))


def test_one_document_leaves_probabilities_unknown():
    dataset = planted_search(documents=5, held=4)
    assert np.isnan(probability(dataset)).all()


def ranks(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(values))


def test_rank_correlations_are_those_of_ranks():
    damages = ((3, 0.5, 0.2, 0.1, 0.4, 2), (3, 0.3, 0.4, 0.2, 0.3, 1))
    dataset = planted_search(damages=damages, texts=("stories", "news"), noise=0.5)
    # All are measured: what the race dropped is planted anew.
    rest = np.random.default_rng(5).uniform(0.1, 4, dataset["kl"].shape)
    dataset["kl"] = dataset["kl"].fillna(rest.astype(np.float32))
    found = rank_correlation(dataset)
    search = dataset["part"].values == "search"
    for step in (1, 2, 3):
        of_step = dataset["size"].values == step
        one, two = (
            ranks(
                dataset["kl"]
                .values[of_step][:, search & (dataset["source"].values == text)]
                .mean(1)
            )
            for text in ("stories", "news")
        )
        expected = np.corrcoef(one, two)[0, 1]
        between = found.sel(step=step, text="stories", text_to="news")
        assert float(between) == pytest.approx(expected)
        assert float(found.sel(step=step, text="news", text_to="news")) == pytest.approx(1)
    assert abs(expected) < 0.999


def test_fewer_than_four_candidates_have_no_rank_correlation():
    dataset = planted_search(noise=0.01)
    found = rank_correlation(dataset).squeeze()
    search = dataset["part"].values == "search"
    measured = np.isfinite(dataset["kl"].values[:, search]).all(1)
    counts = [int((measured & (dataset["size"].values == step)).sum()) for step in (1, 2, 3)]
    assert min(counts) < 4
    assert np.isnan(found).values.tolist() == [count < 4 for count in counts]


def test_texts_that_damage_other_blocks_choose_other_sets():
    damages = ((3, 0.5, 0.1, 0.9, 0.9, 2), (3, 0.1, 0.5, 0.9, 0.9, 2))
    dataset = planted_search(damages=damages, texts=("stories", "news"), noise=0.01)
    chosen = chosen_by_text(dataset).sel(step=1)
    assert chosen.sel(text="stories").item() == "2"
    assert chosen.sel(text="news").item() == "1"


def test_scores_of_a_loss_are_its_rise_and_each_part_has_its_own():
    dataset = planted_search(objective="loss")
    rise = dataset["loss"] - dataset["clean_loss"]
    np.testing.assert_array_equal(scores(dataset), rise)
    np.testing.assert_array_equal(rises(dataset), rise)
    assert searched(rise).sizes["sequence"] == 24
    assert set(held_out(rise)["document"].values) == {12, 13, 14, 15}
    assert (dataset["standing"] == CHOSEN).sum() == 6


def test_a_planted_search_keeps_the_contract_of_its_file(tmp_path):
    from searches import finished

    save(finished(planted_search()), tmp_path / "search.nc")
    assert load(tmp_path / "search.nc").attrs["measurement"] == "search"
