import numpy as np
import pytest
import scipy.stats
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from probes.classifier import (
    STRENGTHS,
    Split,
    fit,
    fit_all,
    interval,
    interval_of_difference,
    labelled,
    threshold,
)


def made(features=6, items=(400, 100, 300), signal=1.0, seed=0):
    random = np.random.default_rng(seed)
    parts = []
    for count in items:
        labels = random.random(count) < 0.5
        values = random.normal(size=(count, features)) * 3 + 5
        values[:, 0] += signal * (2 * labels - 1) * 3
        parts.append((values.astype(np.float32), labels))
    return Split(*parts)


def by_pipeline(split):
    """The plain way: a pipeline for every strength, the best on dev."""
    best = (-1.0, None)
    for strength in STRENGTHS:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=5000))
        model.fit(*split.train)
        best = max(best, (model.score(*split.dev), model), key=lambda pair: pair[0])
    return best[0], best[1].predict(split.test[0]) == split.test[1]


@pytest.mark.parametrize("features", [6, 600], ids=["few", "more than items"])
def test_a_probe_is_the_pipeline_that_is_best_on_dev(features):
    split = made(features)
    found = fit(split)
    accuracy, correct = by_pipeline(split)
    assert found.dev_accuracy == pytest.approx(accuracy, abs=0.011)
    assert (found.correct == correct).mean() > 0.99


def test_probes_in_parallel_are_those_one_by_one():
    splits = [made(seed=seed) for seed in range(4)]
    together = fit_all([lambda split=split: split for split in splits])
    for split, probe in zip(splits, together, strict=True):
        assert (fit(split).correct == probe.correct).all()


@pytest.mark.slow
def test_with_labels_shuffled_probes_are_at_chance_within_their_interval():
    probes = fit_all([lambda seed=seed: made().shuffled(seed) for seed in range(40)])
    data = labelled(probes, "seed", np.arange(300))
    inside = (data.accuracy_low <= 0.5) & (data.accuracy_high >= 0.5)
    assert inside.mean() > 0.85
    assert fit(made()).correct.mean() > 0.8, "there is nothing to be found"


def test_nothing_of_the_test_part_is_seen():
    split = made()
    upset = Split(split.train, split.dev, (split.test[0], ~split.test[1]))
    assert (fit(split).correct == ~fit(upset).correct).all()
    assert fit(split).chosen == fit(upset).chosen
    values, labels = split.test
    more = np.concatenate([values, values * 100 + 50]), np.concatenate([labels, labels])
    moved = fit(Split(split.train, split.dev, more))
    assert moved.dev_accuracy == fit(split).dev_accuracy and moved.chosen == fit(split).chosen
    assert (moved.correct[: len(labels)] == fit(split).correct).all()


def test_a_threshold_is_the_best_on_dev():
    split = made(features=1).only([0])
    grid = np.linspace(0, 10, 21)
    found = threshold(split, grid.tolist())
    accuracies = [((split.dev[0][:, 0] > value) == split.dev[1]).mean() for value in grid]
    assert found.chosen == grid[np.argmax(accuracies)]
    assert found.dev_accuracy == max(accuracies)


def test_without_clusters_an_interval_is_the_binomials():
    correct = np.random.default_rng(0).random(500) < 0.7
    low, high = interval(correct, np.arange(500))
    exact = scipy.stats.binomtest(int(correct.sum()), 500).proportion_ci()
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=0.015)


def test_items_of_a_cluster_are_drawn_together():
    correct = np.repeat(np.random.default_rng(0).random(50) < 0.7, 10)
    low, high = interval(correct, np.arange(500) // 10)
    exact = scipy.stats.binomtest(int(correct[::10].sum()), 50).proportion_ci()
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=0.05)
    assert np.isnan(interval(correct, np.zeros(500, int))).all()


def test_the_interval_of_a_difference_is_that_of_two_means():
    random = np.random.default_rng(0)
    values, first = random.normal(size=900), np.arange(900) < 300
    low, high = interval_of_difference(values, first, np.arange(900))
    welch = scipy.stats.ttest_ind(values[first], values[~first], equal_var=False)
    exact = welch.confidence_interval()
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=0.03)
