"""Logistic probes: fitted on train, chosen on dev, reported on test with intervals."""

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
"""Inverse strengths of the L2 penalty to try."""

REPETITIONS = 1000
"""Number of bootstrap samples of an interval."""

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.bool_]

Part = tuple[Floats, Labels]
"""Features (item, feature) and labels (item,)."""


@dataclass(frozen=True, eq=False)
class Split:
    """Features (item, feature) and labels (item,) of the three parts."""

    train: Part
    """Items that probes are fitted on."""
    dev: Part
    """Items by which strengths, thresholds and orders are chosen."""
    test: Part
    """Items that accuracies are of."""

    @classmethod
    def by_part(
        cls, features: Floats, labels: Labels, parts: NDArray[Any], names: Sequence[str]
    ) -> "Split":
        """Divide features (item, feature) by the names of the three parts."""
        train, dev, test = ((features[parts == name], labels[parts == name]) for name in names)
        return cls(train, dev, test)

    def shuffled(self, seed: int) -> "Split":
        """Return the split with the labels of each part in random order: a control.

        Those of the test part too: a probe that learnt from noise may by chance have learnt a
        direction that tells the true labels apart, in either sense.
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
    """What a fitted probe does on the held-out parts."""

    correct: Labels
    """Whether every test item is classified correctly."""
    dev_accuracy: float
    """Share of dev items that are classified correctly."""
    chosen: float
    """Strength that was best on dev, or for a threshold the threshold."""


def fit(split: Split) -> Probe:
    """Fit logistic regressions on standardised features, and keep the one that is best on dev.

    Where there are more features than items, they are first turned onto the axes of the items
    (singular vectors of the training features), which changes no solution of a penalty that does
    not prefer directions, and makes the fit as small as there are items.
    """
    # In float64: in float32 the solver stalls on small gradients.
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
    """Fit a probe on each of several splits, in parallel; each is made when its turn comes."""
    jobs = (delayed(lambda make: fit(make()))(make) for make in splits)
    return list(Parallel(n_jobs=-1, prefer="threads")(jobs))


def threshold(split: Split, grid: Sequence[float]) -> Probe:
    """Tell items apart by whether their one feature is above the threshold that is best on dev."""
    (dev, labels), (test, expected) = split.dev, split.test
    accuracies = [float(((dev[:, 0] > value) == labels).mean()) for value in grid]
    best = int(np.argmax(accuracies))
    return Probe((test[:, 0] > grid[best]) == expected, accuracies[best], float(grid[best]))


def interval(
    values: NDArray[Any], cluster: NDArray[np.int64], seed: int = 0
) -> tuple[float, float]:
    """95 % interval of a mean over items, by bootstrap over clusters of items.

    Parameters
    ----------
    values : array of shape (item,)
        What is averaged.
    cluster : array of shape (item,)
        Items of one cluster (a document, say) are drawn together.
    seed : int
        Of the bootstrap.

    Returns
    -------
    low, high : float
        As `robustness.statistics.uncertainty.interval` gives them; NaN for a single cluster.
    """
    return uncertainty.interval(_means(values, cluster, seed))


def interval_of_difference(
    values: NDArray[Any], first: Labels, cluster: NDArray[Any], seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the mean of the first items less the mean of the others.

    Clusters of the two are drawn apart; otherwise as `interval`.
    """
    if min(np.unique(cluster[rows]).size for rows in (first, ~first)) < 2:
        return float("nan"), float("nan")
    ones = _means(values[first], cluster[first], seed)
    others = _means(values[~first], cluster[~first], seed + 1)
    # As wide as for the fewer clusters of the two, since the difference is no better known.
    fewer = min(ones, others, key=lambda draws: float(draws[DRAWN_FROM]))
    difference = (ones.drop_vars(DRAWN_FROM) - others.drop_vars(DRAWN_FROM)).assign_coords(
        uncertainty.draw_coordinates(fewer)
    )
    return uncertainty.interval(difference)


def _means(values: NDArray[Any], cluster: NDArray[Any], seed: int) -> xr.DataArray:
    """Return means over items of data that are drawn again, whole clusters at a time."""
    items = xr.DataArray(
        values.astype(np.float64), dims="item", coords={"document": ("item", cluster)}
    )
    return uncertainty.bootstrap_means(items, "item", draws=REPETITIONS, seed=seed)


def labelled(
    probes: Sequence[Probe], dim: str, cluster: NDArray[np.int64], seed: int = 0
) -> xr.Dataset:
    """Return what probes do on the same test items.

    Parameters
    ----------
    probes : sequence of Probe
        Along the dimension.
    dim : str
        Its name.
    cluster : array of int of shape (item,)
        As for `interval`.
    seed : int
        Of the bootstrap.

    Returns
    -------
    Dataset
        `correct` (dim, item), 0 or 1; `accuracy`, with the bounds of its 95 % interval
        `accuracy_low` and `accuracy_high`, `dev_accuracy` and `chosen` (dim).
    """
    correct = np.array([probe.correct for probe in probes], dtype=np.int8)
    bounds = np.array([interval(items, cluster, seed) for items in correct])
    of_dev = np.array([probe.dev_accuracy for probe in probes])
    chosen = np.array([probe.chosen for probe in probes])

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
