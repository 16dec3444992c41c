import numpy as np
import pytest
from searches import planted_search

from robustness.files.kinds.searches import CHOSEN, DROPPED, NOT_RACED, NOT_WEIGHED, TIED
from robustness.files.netcdf import load, save
from robustness.pruning.scores import held_out, rises, scores, searched
from robustness.pruning.stability import chosen_by_text, probability, rank_correlation

CLOSE = (3, 0.5, 0.3, 0.28, 0.32, 2)
"""Damages of blocks of which some are nearly alike."""


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
    dataset = planted_search(CLOSE, noise=0.6, objective=objective)
    found = probability(dataset)
    for method, step in (("pairwise", 2), ("pairwise", 3), ("greedy", 1)):
        for unit, share in resampled(dataset, method, step, 1000).items():
            ours = float(at(found, method, step, unit=unit))
            assert ours == pytest.approx(share, abs=0.08)
    spread = at(found, "pairwise", 2)
    assert ((spread > 0.05) & (spread < 0.95)).any()


def test_units_of_the_best_set_are_as_many_as_the_step():
    found = probability(planted_search(CLOSE, noise=0.6))
    np.testing.assert_allclose(found.sum("unit").sel(strategy="pairwise"), [1, 2, 3])
    greedy = found.sum("unit").sel(strategy="greedy").values
    assert greedy[0] == pytest.approx(1) and (np.diff(greedy) >= 0).all() and greedy[2] < 2.99


def additive(method: str, width: int = 1, units: int = 6, documents: int = 24):
    """A search in which damages add up, all sets are measured, and a method extends its best sets.

    Returns the dataset and the cost of each unit in each document.
    """
    random = np.random.default_rng(3)
    costs = np.linspace(1, 1.4, units)[:, None] * random.gamma(9, 1 / 9, (units, documents))
    dataset = planted_search(costs[:, 0].tolist(), documents=documents, held=0)
    removed = [list(map(int, text.split())) for text in dataset["removed"].values]
    kl = np.stack([costs[lacking].sum(0) for lacking in removed])
    dataset["kl"].values[:] = np.repeat(kl, 2, axis=1)
    dataset = dataset.assign_coords(strategy=["exhaustive", method]).assign_attrs(beam=width)
    dataset["standing"].values[1] = NOT_WEIGHED
    kept = [()]
    for step in range(3):
        weighed = extensions(kept, units)
        rows = [removed.index(sorted(lacking)) for lacking in weighed]
        dataset["standing"].values[1, step, rows] = TIED
        kept = best_sets(weighed, costs.mean(1), width)
        dataset["chosen"].values[1, step] = str(
            dataset["candidate"].values[removed.index(sorted(kept[0]))]
        )
    return dataset, costs


def extensions(kept, units: int) -> list[set[int]]:
    grown = {frozenset({*one, unit}) for one in kept for unit in range(units) if unit not in one}
    return [set(one) for one in grown]


def best_sets(sets, means, count: int) -> list[set[int]]:
    return sorted(sets, key=lambda lacking: sum(means[unit] for unit in lacking))[:count]


@pytest.mark.parametrize(("method", "width"), [("greedy", 1), ("beam", 3)])
def test_samples_that_leave_the_measured_sets_count_only_what_they_had_decided(method, width):
    dataset, costs = additive(method, width)
    found = probability(dataset, draws=5000).sel(strategy=method)
    units, documents = costs.shape
    random, draws = np.random.default_rng(8), 2500
    paths = [[()]]
    for _ in range(3):
        paths.append(best_sets(extensions(paths[-1], units), costs.mean(1), width))
    bound, whole = np.zeros((3, units)), np.zeros((3, units))
    for _ in range(draws):
        means = costs[:, random.integers(documents, size=documents)].mean(1)
        kept, sure = [()], None
        for step in range(3):
            kept = best_sets(extensions(kept, units), means, width)
            whole[step, list(kept[0])] += 1
            bound[step, list(kept[0] if sure is None else sure)] += 1
            if sure is None and {*map(frozenset, kept)} != {*map(frozenset, paths[step + 1])}:
                sure = set.intersection(*kept)
    np.testing.assert_allclose(found, bound / draws, atol=0.05)
    assert (found.values <= whole / draws + 0.05).all()
    assert (whole / draws - found.values).max() > 0.1, "something is left out"


def test_the_steps_of_a_path_draw_the_same_documents():
    dataset, _ = additive("greedy")
    difference = np.random.default_rng(1).normal(size=24)
    difference = np.repeat(0.15 + difference - difference.mean(), 2)
    kl = dict(zip(dataset["removed"].values, np.full((41, 48), 9.0), strict=True))
    # Wherever 0 is better than 1, so is to remove 1 next than to remove 2.
    kl |= {"0": 1 - difference / 2, "1": 1 + difference / 2}
    kl |= {"0 1": 3 - difference / 2, "0 2": 3 + difference / 2}
    dataset["kl"].values[:] = [kl[text] for text in dataset["removed"].values]
    # The second race ended before the last document.
    dataset["kl"][dataset["size"].values == 2, 46:] = np.nan
    dataset["standing"].values[1] = np.where(
        dataset["step"].values[:, None] == dataset["size"].values, TIED, NOT_WEIGHED
    )
    for step, text in ((1, "0"), (2, "0 1")):
        (place,) = np.flatnonzero(dataset["removed"] == text)
        dataset["chosen"].loc["greedy", step] = dataset["candidate"].values[place]
    found = probability(dataset).sel(strategy="greedy")
    assert 0.6 < found.sel(step=1, unit="0") < 0.95
    assert found.sel(step=2, unit="1") > 0.9, "0.85 if draws differed"


def test_a_unit_that_greedy_removed_keeps_the_share_of_its_step():
    found = probability(additive("greedy")[0]).sel(strategy="greedy")
    first = int(found.values[0].argmax())
    assert found[0, first] < 0.95
    assert (found[:, first] == found[0, first]).all()


def test_one_shot_orders_single_units_anew_in_each_sample():
    dataset, costs = additive("one-shot")
    # It weighs one set of each size beyond single units.
    for step in (1, 2):
        others = dataset["candidate"] != at(dataset["chosen"], "one-shot", step + 1)
        dataset["standing"].values[1, step, others.values] = NOT_WEIGHED
    found = probability(dataset, draws=5000).sel(strategy="one-shot")
    random, counts = np.random.default_rng(8), np.zeros((3, 6))
    for _ in range(2500):
        order = costs[:, random.integers(24, size=24)].mean(1).argsort()
        for step in range(3):
            counts[step, order[: step + 1]] += 1
    np.testing.assert_allclose(found, counts / 2500, atol=0.05)
    dataset["chosen"].loc["one-shot", 3] = ""
    missing = np.isnan(probability(dataset).sel(strategy="one-shot"))
    assert missing.all("unit").values.tolist() == [False, False, True]


def test_what_another_method_read_more_of_does_not_take_rivals_away():
    dataset = planted_search(CLOSE, noise=0.6)
    before = at(probability(dataset), "pairwise", 2)
    assert before.max() < 1
    # The first race ended after 20 of 24 sequences; the chosen set went on in another one.
    leaders = dataset["standing"].values[0, 1] == TIED
    dataset["kl"][leaders, 20:] = np.nan
    cut = planted_search(CLOSE, noise=0.6)
    cut["kl"][dataset["size"].values == 2, 20:] = np.nan
    assert at(probability(dataset), "pairwise", 2).equals(at(probability(cut), "pairwise", 2))


def test_a_set_that_was_not_raced_cannot_win():
    dataset = planted_search(noise=0.01)
    best = at(dataset["chosen"], "pairwise", 1).item()
    second = dataset["candidate"].values[dataset["removed"].values == "2"].item()
    dataset["chosen"].loc["pairwise", 1] = second
    dataset["standing"].loc["pairwise", 1, best] = NOT_RACED
    dataset["standing"].loc["pairwise", 1, second] = CHOSEN
    assert float(at(probability(dataset), "pairwise", 1, unit="2")) == 1


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
    found = probability(dataset)
    assert np.isnan(at(found, "greedy", 2)).all() and np.isnan(at(found, "greedy", 3)).all()
    assert at(found, "greedy", 1).sum() == 1


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


def test_texts_choose_among_all_candidates_where_all_were_measured():
    dataset = planted_search((3, 0.5, 0.2, 0.19, 0.4, 2), texts=("stories", "news"), noise=0.01)
    third = dataset["candidate"].values[dataset["removed"].values == "3"].item()
    second = dataset["candidate"].values[dataset["removed"].values == "2"].item()
    # The race has one survivor, so that later sequences know no other set.
    dataset["kl"].loc[dataset["candidate"] != third, 4:] = np.nan
    dataset["kl"].loc[second, 2:3] = 0.01
    chosen = chosen_by_text(dataset).sel(step=1)
    assert chosen.sel(text="stories").item() == "3"
    assert chosen.sel(text="news").item() == "2"


def test_a_text_without_a_choice_removes_nothing():
    dataset = planted_search()
    single = dataset.isel(candidate=np.flatnonzero(dataset["size"].values == 1)[:1])
    assert (chosen_by_text(single) == "").all()


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
