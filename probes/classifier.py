"""Logistic probes: fitted on train, selected on dev, evaluated on test with intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from joblib import Parallel, delayed
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from robustness.statistics import uncertainty
from robustness.statistics.uncertainty import DRAWN_FROM

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Inverse strengths of the L2 penalty that are tried."""

REPETITIONS = 1000
"""Number of bootstrap samples of an interval."""

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.bool_]

Part = tuple[Floats, Labels]
"""Features (item, feature) and labels (item,)."""


@dataclass(frozen=True, eq=False)
class Split:
    """Features and labels of the three parts of a data set."""

    train: Part
    """Items that probes are fitted on."""
    dev: Part
    """Items that penalties, thresholds and orders are chosen on."""
    test: Part
    """Items that accuracies are measured on."""

    @classmethod
    def by_part(
        cls, features: Floats, labels: Labels, parts: NDArray[Any], names: Sequence[str]
    ) -> "Split":
        """Divide features (item, feature) by the names of the three parts, train, dev and test."""
        divided: list[Part] = []
        for name in names:
            rows = parts == name
            divided.append((features[rows], labels[rows]))
        return cls(*divided)

    def shuffled(self, seed: int) -> "Split":
        """Return the split with the labels of each part in random order: a control.

        The labels of the test part are shuffled, too: a probe that is fitted to noise may by chance
        have found a direction that separates the true labels, in either sense.
        """
        random = np.random.default_rng(seed)

        def shuffle(part: Part) -> Part:
            return part[0], random.permutation(part[1])

        return Split(shuffle(self.train), shuffle(self.dev), shuffle(self.test))

    def only(self, columns: Sequence[int]) -> "Split":
        """Return the split with some of the features."""

        def keep(part: Part) -> Part:
            return part[0][:, columns], part[1]

        return Split(keep(self.train), keep(self.dev), keep(self.test))


@dataclass(frozen=True, eq=False)
class Probe:
    """Results of a fitted probe on the held-out parts."""

    correct: Labels
    """Whether every test item is classified correctly."""
    dev_accuracy: float
    """Share of dev items that are classified correctly."""
    chosen: float
    """Inverse penalty that was best on dev, or the threshold of a probe that is one."""


def fit(split: Split) -> Probe:
    """Fit logistic regressions on standardised features, and keep the one that is best on dev.

    With more features than items, features are first projected onto the singular vectors of the
    training features. The solution is the same, since the L2 penalty prefers no direction, and the
    fit has only as many features as there are items.
    """
    # In float32 the solver stalls on small gradients.
    scaler = StandardScaler().fit(split.train[0].astype(np.float64))
    train = scaler.transform(split.train[0].astype(np.float64))
    dev = scaler.transform(split.dev[0].astype(np.float64))
    test = scaler.transform(split.test[0].astype(np.float64))
    if train.shape[1] > train.shape[0]:
        axes = np.linalg.svd(train, full_matrices=False)[2].T
        train, dev, test = train @ axes, dev @ axes, test @ axes
    best = Probe(np.zeros(0, np.bool_), -1.0, 0.0)
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=5000).fit(train, split.train[1])
        accuracy = float((model.predict(dev) == split.dev[1]).mean())
        if accuracy > best.dev_accuracy:
            best = Probe(model.predict(test) == split.test[1], accuracy, strength)
    return best


def fit_all(splits: Sequence[Callable[[], Split]]) -> list[Probe]:
    """Fit a probe on each of several splits, in parallel."""
    # Each split is made when its turn comes, so that few are in memory at once.
    jobs = (delayed(lambda make: fit(make()))(make) for make in splits)
    return list(Parallel(n_jobs=-1, prefer="threads")(jobs))


def threshold(split: Split, grid: Sequence[float]) -> Probe:
    """Classify items by whether their one feature is above the threshold that is best on dev."""
    (dev, labels), (test, expected) = split.dev, split.test
    accuracies = []
    for value in grid:
        accuracies.append(float(((dev[:, 0] > value) == labels).mean()))
    best = int(np.argmax(accuracies))
    return Probe((test[:, 0] > grid[best]) == expected, accuracies[best], float(grid[best]))


def interval(
    values: NDArray[Any], cluster: NDArray[np.int64], seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of a mean over items, by bootstrap over clusters of items.

    Parameters
    ----------
    values : array of shape (item,)
        Values of the items.
    cluster : array of shape (item,)
        Cluster of each item, such as its document; the items of a cluster are drawn together.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    low, high : float
        Bounds, as `robustness.statistics.uncertainty.interval` returns them; NaN for one cluster.
    """
    return uncertainty.interval(_means(values, cluster, seed))


def interval_of_difference(
    values: NDArray[Any], first: Labels, cluster: NDArray[Any], seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of the mean of the first items minus the mean of the others.

    Clusters of the two groups are drawn independently; otherwise as for `interval`.
    """
    if min(np.unique(cluster[first]).size, np.unique(cluster[~first]).size) < 2:
        return float("nan"), float("nan")
    ones = _means(values[first], cluster[first], seed)
    others = _means(values[~first], cluster[~first], seed + 1)
    # Widened for the smaller number of clusters, since the difference is no more certain.
    fewer = min(ones, others, key=lambda draws: float(draws[DRAWN_FROM]))
    difference = (ones.drop_vars(DRAWN_FROM) - others.drop_vars(DRAWN_FROM)).assign_coords(
        uncertainty.draw_coordinates(fewer)
    )
    return uncertainty.interval(difference)


def _means(values: NDArray[Any], cluster: NDArray[Any], seed: int) -> xr.DataArray:
    """Return means over items of bootstrap samples, which draw whole clusters."""
    # `uncertainty` takes clusters from the coordinate `document`, whatever they are.
    items = xr.DataArray(
        values.astype(np.float64), dims="item", coords={"document": ("item", cluster)}
    )
    return uncertainty.bootstrap_means(items, "item", draws=REPETITIONS, seed=seed)


def labelled(
    probes: Sequence[Probe], dim: str, cluster: NDArray[np.int64], seed: int = 0
) -> xr.Dataset:
    """Return the results of probes on the same test items.

    Parameters
    ----------
    probes : sequence of Probe
        Probes along the dimension.
    dim : str
        Name of the dimension.
    cluster : array of int of shape (item,)
        As for `interval`.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    Dataset
        `correct` (dim, item), 0 or 1; `accuracy`, with the bounds of its 95 % interval
        `accuracy_low` and `accuracy_high`, `dev_accuracy` and `chosen` (dim).
    """
    corrects, intervals, dev_accuracies, choices = [], [], [], []
    for probe in probes:
        corrects.append(probe.correct)
        intervals.append(interval(probe.correct.astype(np.int8), cluster, seed))
        dev_accuracies.append(probe.dev_accuracy)
        choices.append(probe.chosen)
    correct, bounds = np.array(corrects, dtype=np.int8), np.array(intervals)
    of_dev, chosen = np.array(dev_accuracies), np.array(choices)

    def share(name: str) -> dict[str, str]:
        return {"units": "1", "long_name": name}

    return xr.Dataset(
        {
            "correct": ((dim, "item"), correct, share("whether a test item is told right")),
            "accuracy": (dim, correct.mean(1), share("share of test items told right")),
            "accuracy_low": (dim, bounds[:, 0], share("lower bound of accuracy, 95 % bootstrap")),
            "accuracy_high": (dim, bounds[:, 1], share("upper bound of accuracy, 95 % bootstrap")),
            "dev_accuracy": (dim, of_dev, share("share of dev items told right")),
            "chosen": (dim, chosen, share("inverse penalty, or threshold, that is best on dev")),
        }
    )
