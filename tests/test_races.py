"""Races and the quadratic model: laws that hold without any model."""

from itertools import combinations
from math import ceil

import numpy as np
import pytest
from families import random_tokens

from robustness.errors import Refusal
from robustness.files.kinds.searches import CHOSEN, NOT_RACED, TIED
from robustness.pruning import quadratic
from robustness.pruning.parts import divide
from robustness.pruning.quadratic import QuadraticModel, pairs_of
from robustness.pruning.racing import FEWEST_DOCUMENTS, Round, race, separated
from robustness.text.corpus import Corpus

BATCH, BATCHES = 4, 12


def run(values, documents=None, keep=1, level=0.05, batches=BATCHES):
    """Race candidates that are their own numbers on values (candidate, sequence)."""
    values = np.asarray(values)
    cuts = [frozenset([index]) for index in range(len(values))]
    documents = np.arange(values.shape[1]) if documents is None else documents

    def measure(candidates, batch):
        rows = [min(cut) for cut in candidates]
        return values[rows, : BATCH * (batch + 1)]

    return race(cuts, batches, measure, lambda b: documents[: BATCH * (b + 1)], keep, level)


def noisy(candidates: int, spread: float, seed: int = 0, own: float = 0.3):
    """Scores that share what is due to the text, as those of pruned models do."""
    random = np.random.default_rng(seed)
    shared = random.gamma(4, 0.25, BATCH * BATCHES)
    means = 1 + spread * np.arange(candidates)
    return shared * (means[:, None] + own * random.normal(size=(candidates, BATCH * BATCHES)))


def tokens(finish) -> int:
    return sum(map(len, finish.measured))


def test_the_best_wins_wherever_differences_are_the_same_in_every_document():
    random = np.random.default_rng(0)
    for seed in range(12):
        shared = random.gamma(1, 1, BATCH * BATCHES)
        costs = random.permutation(1 + 1e-3 * np.arange(20))
        finish = run(shared + costs[:, None], keep=1 + seed % 3)
        assert finish.ranking[0] == {int(costs.argmin())}
        assert finish.standing[0] == CHOSEN and TIED not in finish.standing
        # Nothing is told apart by fewer documents, and nothing more is needed.
        assert len(finish.measured) == ceil(FEWEST_DOCUMENTS / BATCH)


def test_the_order_of_candidates_changes_nothing():
    values = noisy(30, 0.02)
    plain, order = run(values), np.random.default_rng(1).permutation(30)
    turned = run(values[order])

    def named(finish):
        return [int(order[min(cut)]) for cut in finish.ranking]

    assert named(turned) == [min(cut) for cut in plain.ranking]
    assert turned.standing == plain.standing and tokens(turned) == tokens(plain)
    assert turned.means == pytest.approx(plain.means, rel=1e-12)


def test_of_equal_candidates_the_first_is_chosen_and_the_others_are_tied():
    finish = run(np.repeat(noisy(1, 0.0), 3, axis=0))
    assert finish.standing == [CHOSEN, TIED, TIED]
    assert [min(cut) for cut in finish.ranking] == [0, 1, 2]
    assert len(finish.measured) == BATCHES


def test_many_sequences_of_few_documents_drop_nothing():
    values = noisy(10, 0.5)
    few = np.arange(values.shape[1]) * (FEWEST_DOCUMENTS - 1) // values.shape[1]
    finish = run(values, few)
    assert len(finish.ranking) == 10 and set(finish.standing) == {CHOSEN, TIED}
    assert len(run(values).ranking) == 1


def test_copies_of_a_documents_sequences_are_no_further_evidence():
    values = noisy(6, 0.05, own=0.5)[:, :24]
    documents = np.arange(24)
    copied = np.repeat(values, 5, axis=1), np.repeat(documents, 5)
    for level in (0.001, 0.05, 0.3):
        once = separated(values, 0, documents, level, 5)
        assert (separated(copied[0], 0, copied[1], level, 5) == once).all()
    alone = separated(copied[0], 0, np.arange(120), 0.05, 5)
    assert alone.sum() > separated(copied[0], 0, copied[1], 0.05, 5).sum()


def test_separated_is_a_paired_t_test_of_documents_with_a_divided_level():
    scipy_stats = pytest.importorskip("scipy.stats")
    values = noisy(12, 0.01, own=0.1)
    found = separated(values, 3, np.arange(values.shape[1]), 0.05, 11)
    pvalues = scipy_stats.ttest_rel(values, values[3:4], axis=1, alternative="greater").pvalue
    assert (found == (pvalues < 0.05 / 11)).all() and 0 < found.sum() < 11


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_never_wins(bad):
    values = np.where(np.isfinite(bad), bad, np.inf) * np.ones((4, BATCH * BATCHES))
    values[2] = 1e6
    finish = run(values)
    assert finish.ranking == [{2}] and finish.standing == [CHOSEN]
    late = noisy(3, 0.0)
    late[0, -1] = np.inf
    finish = run(late)
    assert finish.ranking[0] != {0}


def test_a_race_keeps_as_many_as_are_wanted():
    for keep in (1, 3, 8):
        finish = run(noisy(20, 0.2), keep=keep)
        assert len(finish.ranking) >= keep
        assert {0} in [set(cut) for cut in finish.ranking]
    assert len(run(noisy(20, 0.2), keep=None).ranking) == 20


def test_costs_of_rounds_that_prepared_another_are_added():
    one, two = frozenset([1]), frozenset([2])
    earlier = Round((one, two), (TIED, CHOSEN), (two, one), (1.0, 2.0), 10, 20, 30)
    later = Round((two,), (CHOSEN,), (two,), (1.0,), 1, 2, 3).after(earlier)
    standing = dict(zip(later.candidates, later.standing, strict=True))
    assert standing == {one: NOT_RACED, two: CHOSEN} and later.raced == 1
    assert (later.tokens_read, later.tokens_in_full, later.applications) == (11, 22, 33)


def planted(units: int, order: int, seed: int = 0):
    """Costs of sets by interactions up to an order."""
    random = np.random.default_rng(seed)
    terms = {}
    for size in range(1, order + 1):
        for members in combinations(range(units), size):
            terms[members] = random.normal() / size + (size == 1)

    def cost(removed):
        total = 0.0
        for members, value in terms.items():
            total += value * set(members).issubset(removed)
        return total

    return cost


def fitted(cost, units: int) -> QuadraticModel:
    singles = np.array([cost([unit]) for unit in range(units)])
    pairs = np.array([cost(pair) for pair in combinations(range(units), 2)])
    return QuadraticModel.of(singles, pairs_of(pairs, units))


@pytest.mark.parametrize("order", [1, 2])
def test_additive_and_quadratic_costs_are_predicted_exactly(order):
    cost = planted(7, order)
    model = fitted(cost, 7)
    for size in range(1, 8):
        sets = np.array(list(combinations(range(7), size)))
        true = np.array([cost(row.tolist()) for row in sets])
        np.testing.assert_allclose(model.predict(sets), true, atol=1e-12)
        best = model.best(size, 3)
        np.testing.assert_array_equal(best, sets[np.argsort(true, kind="stable")[:3]])


def test_interactions_of_three_units_are_not_predicted():
    cost = planted(7, 3)
    sets = np.array(list(combinations(range(7), 3)))
    true = [cost(row.tolist()) for row in sets]
    assert np.abs(fitted(cost, 7).predict(sets) - true).max() > 0.1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("width", [5, 4000])
def test_bounded_search_finds_what_comparing_all_sets_finds(seed, width, monkeypatch):
    model = fitted(planted(12, 2, seed), 12)
    exact = {size: model.best(size, 5) for size in range(1, 8)}
    monkeypatch.setattr(quadratic, "MOST_SETS", 0)
    monkeypatch.setattr(quadratic, "WIDTH", width)
    count = 5 if width > 5 else 1
    for size, sets in exact.items():
        np.testing.assert_array_equal(model.best(size, 5)[:count], sets[:count])


def text(documents, name: str = "random", seed: int = 0) -> Corpus:
    document = np.repeat(np.arange(len(documents)), documents)
    count = len(document)
    return Corpus(
        random_tokens(count, 6, seed).numpy(), np.full(count, 6), document, name, "windows",
        "none", 0,
    )  # fmt: skip


@pytest.mark.parametrize("holdout", [0.1, 0.25, 0.4, 0.5, 0.8, 0.9])
def test_as_many_documents_as_a_refusal_names_are_enough_and_fewer_are_not(holdout):
    with pytest.raises(Refusal, match="held-out part takes") as refusal:
        divide([text([1, 2])], holdout)
    needed = int(str(refusal.value).split("takes ")[1].split()[0])
    assert needed == round(2 / min(holdout, 1 - holdout))
    for sizes in ([1] * needed, [9, *[1] * (needed - 1)], [*[1] * (needed - 1), 9]):
        parts = divide([text(sizes)], holdout)
        first = parts.corpus.document[: parts.searched], parts.corpus.document[parts.searched :]
        assert all(np.unique(documents).size >= 2 for documents in first)
    with pytest.raises(Refusal):
        divide([text([1] * (needed - 1))], holdout)


def test_no_document_is_in_both_parts_and_texts_alternate():
    random = np.random.default_rng(0)
    sizes = [random.integers(1, 6, 20).tolist() for _ in range(3)]
    texts = [text(size, f"text {at}", at) for at, size in enumerate(sizes)]
    parts = divide(texts, 0.25)
    documents, end = parts.corpus.document, parts.searched
    assert not set(documents[:end]) & set(documents[end:])
    assert len(set(documents)) == 60 and parts.texts == ["text 0", "text 1", "text 2"]
    share = (parts.part == "held-out").mean()
    assert share == pytest.approx(0.25, abs=0.05)
    for at in range(3):
        own = parts.source == f"text {at}"
        tokens = parts.corpus.tokens[own]
        np.testing.assert_array_equal(tokens, texts[at].tokens)
        # A part of the first half of the search is of each text.
        assert own[: end // 2].sum() == pytest.approx(own[:end].sum() / 2, abs=1.5)


def test_without_a_held_out_part_all_is_searched():
    parts = divide([text([1, 1, 3])], 0)
    assert parts.searched == 5 and (parts.part == "search").all()
    first, second = parts.batches(12)
    assert [rows.stop for rows in first] == [2, 4, 5] and second == []
