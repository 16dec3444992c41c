import numpy as np
import pytest
from searches import planted_search

from robustness.files.kinds.searches import CHOSEN, DROPPED, NOT_WEIGHED, TIED
from robustness.files.netcdf import load, save
from robustness.pruning.scores import held_out, rises, scores, searched
from robustness.pruning.stability import chosen_by_text, probability, rank_correlation


def at(values, method: str, step: int, **labels):
    """Values of a method at a step."""
    return values.sel({"strategy": method, "step": step, **labels})


def resampled(dataset, method: str, step: int, draws: int = 3000) -> dict[str, float]:
    """How often each unit is in the best set, document by document and draw by draw."""
    random = np.random.default_rng(99)
    search = dataset.isel(sequence=dataset["part"].values == "search")
    values, document = scores(search).values, search["document"].values
    weighed = at(dataset["standing"], method, step).values != NOT_WEIGHED
    weighed &= dataset["size"].values == step
    chosen = at(dataset["chosen"], method, step).item()
    rows = ~np.isnan(values[list(dataset["candidate"].values).index(chosen)])
    values, document = values[:, rows], document[rows]
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


def test_a_candidate_is_compared_where_the_chosen_one_was_measured():
    dataset = planted_search(noise=0.6)
    chosen = at(dataset["chosen"], "pairwise", 2).item()
    # A race that ended after 10 of 24 sequences: the others went no further either, or less far.
    dataset["kl"].loc[dataset["size"] == 2, 10:23] = np.nan
    other = at(dataset["chosen"], "greedy", 2).item()
    assert other == chosen
    shares = resampled(dataset, "pairwise", 2, 1000)
    for unit, share in shares.items():
        assert float(at(probability(dataset), "pairwise", 2, unit=unit)) == pytest.approx(
            share, abs=0.08
        )
    tied = dataset["standing"].values[0, 1] == TIED
    dataset["kl"][tied, 9] = np.nan
    alone = at(probability(dataset), "pairwise", 2)
    removed = dataset["removed"].sel(candidate=chosen).item().split()
    assert (alone.sel(unit=removed) == 1).all() and float(alone.sum()) == 2


def test_smaller_sets_that_prepare_a_step_cannot_win_there():
    dataset = planted_search(noise=0.01)
    best = at(dataset["chosen"], "pairwise", 1).item()
    dataset["standing"].loc["pairwise", 3, best] = DROPPED
    assert float(at(probability(dataset), "pairwise", 3).sum()) == 3


def test_a_candidate_that_a_method_did_not_weigh_cannot_win_there():
    dataset = planted_search(noise=0.01)
    best = at(dataset["chosen"], "pairwise", 1).item()
    dataset["standing"].loc["greedy", 1, best] = NOT_WEIGHED
    dataset["chosen"].loc["greedy", 1] = ""
    assert float(at(probability(dataset), "pairwise", 1, unit="3")) == 1
    assert np.isnan(at(probability(dataset), "greedy", 1)).all()
    second, third = (
        dataset["candidate"].values[dataset["removed"].values == unit].item() for unit in "24"
    )
    dataset["chosen"].loc["greedy", 1] = second
    dataset["standing"].loc["greedy", 1, :] = NOT_WEIGHED
    dataset["standing"].loc["greedy", 1, [second, third]] = TIED
    assert float(at(probability(dataset), "greedy", 1, unit="2")) == 1


def test_a_method_that_weighs_one_set_alone_has_no_probability():
    dataset = planted_search(noise=0.01)
    others = (dataset["candidate"] != at(dataset["chosen"], "greedy", 2)).values
    dataset["standing"].values[1, 1, others] = NOT_WEIGHED
    assert np.isnan(at(probability(dataset), "greedy", 2)).all()
    assert at(probability(dataset), "greedy", 3).sum() == 3


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


def test_rank_correlations_are_those_of_ranks_where_all_were_measured():
    damages = ((3, 0.5, 0.2, 0.1, 0.4, 2), (3, 0.3, 0.4, 0.2, 0.3, 1))
    dataset = planted_search(damages=damages, texts=("stories", "news"), noise=0.5)
    found = rank_correlation(dataset)
    for step in (1, 2, 3):
        of_step = dataset["size"].values == step
        # The race drops candidates after the first four sequences, of two documents.
        first = dataset["kl"].values[of_step][:, :4]
        assert np.isfinite(first).all()
        one, two = (ranks(rows.mean(1)) for rows in (first[:, :2], first[:, 2:]))
        expected = np.corrcoef(one, two)[0, 1]
        between = found.sel(step=step, text="stories", text_to="news")
        assert float(between) == pytest.approx(expected)
        assert float(found.sel(step=step, text="news", text_to="news")) == pytest.approx(1)
    assert abs(expected) < 0.999


def test_fewer_than_four_candidates_or_a_text_without_any_have_no_rank_correlation():
    assert np.isfinite(rank_correlation(planted_search())).all()
    three = planted_search((3, 0.5, 0.2), sizes=(1, 2))
    assert np.isnan(rank_correlation(three)).all()
    two_texts = planted_search(texts=("stories", "news"), documents=16)
    two_texts["kl"][:, two_texts["source"].values == "news"] = np.nan
    found = rank_correlation(two_texts).sel(step=2)
    assert np.isnan(found.values).tolist() == [[False, True], [True, True]]


def test_texts_that_damage_other_blocks_choose_other_sets():
    damages = ((3, 0.5, 0.1, 0.9, 0.9, 2), (3, 0.1, 0.5, 0.9, 0.9, 2))
    dataset = planted_search(damages=damages, texts=("stories", "news"), noise=0.01)
    chosen = chosen_by_text(dataset).sel(step=1)
    assert chosen.sel(text="stories").item() == "2"
    assert chosen.sel(text="news").item() == "1"


def test_a_text_chooses_among_the_candidates_that_were_measured_on_most_of_it():
    dataset = planted_search(noise=0.01)
    # Best by far on the only sequence that it was measured on.
    worst = dataset["candidate"].values[dataset["removed"].values == "0"].item()
    dataset["kl"].loc[worst, 0] = 0
    dataset["kl"].loc[worst, 1:] = np.nan
    assert chosen_by_text(dataset).sel(step=1).item() == "3"


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
