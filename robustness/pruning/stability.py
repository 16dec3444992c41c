"""Stability of a search: which units other documents, or other texts, would have removed.

A race measures candidates on as much text as it takes to choose, and only what was measured on the
same sequences as the chosen candidate can win against it. What the race dropped before, or no
method weighed, might be the best one on other documents and has no part here: the probabilities are
those of a choice among the leaders. They are about the sample of documents, and not about texts of
another kind, which `rank_correlation` compares.
"""

import numpy as np
import scipy  # its parts are loaded when they are used: a search without this needs none
import xarray as xr
from numpy.typing import NDArray

from robustness.files.kinds.searches import NOT_WEIGHED
from robustness.pruning.scores import scores, searched
from robustness.statistics.uncertainty import DRAWS, bootstrap_means

FEWEST = 4
"""Minimum number of candidates with a rank correlation."""


def probability(dataset: xr.Dataset, *, draws: int = DRAWS, seed: int = 0) -> xr.DataArray:
    """Return how often each unit is in the best set of each size when documents are drawn again.

    Parameters
    ----------
    dataset : Dataset
        Dataset of a search.
    draws : int
        Number of bootstrap samples of the documents that the search read.
    seed : int
        Seed of the samples.

    Returns
    -------
    DataArray
        Share of the samples in which the best of some candidates lacks a unit, (strategy, step,
        unit): of those that the method weighed, that lack as many units as the step says, and that
        were measured on all sequences of the search that the chosen one was. NaN where a method
        chose nothing at a step, weighed one set alone, or read fewer than two documents.
    """
    values = searched(scores(dataset)).transpose("candidate", "sequence")
    known = np.isfinite(values.values)
    weighed = dataset["standing"].transpose("strategy", "step", "candidate").values > NOT_WEIGHED
    chosen = dataset["chosen"].transpose("strategy", "step").values
    candidates = list(map(str, dataset["candidate"].values))
    size, removed = dataset["size"].values, _removes(dataset)
    shares = np.full((*chosen.shape, removed.shape[1]), np.nan)
    for method, step in np.ndindex(chosen.shape):
        best = str(chosen[method, step])
        if best not in candidates:
            continue
        rows = known[candidates.index(best)]
        # Rounds that prepare a step weigh smaller sets too.
        alike = weighed[method, step] & (size == dataset["step"].values[step])
        rivals = np.flatnonzero(alike & known[:, rows].all(1))
        # A method that weighs one set alone has no choice that other documents could change.
        if rows.any() and rivals.size and alike.sum() > 1:
            means = bootstrap_means(values[rivals, rows], draws=draws, seed=seed)
            # Draw 0 is the documents themselves.
            drawn = means.transpose("draw", "candidate").values[1:]
            if np.isfinite(drawn).all():
                shares[method, step] = removed[rivals[drawn.argmin(1)]].mean(0)
    return xr.DataArray(
        shares,
        dims=("strategy", "step", "unit"),
        coords={name: dataset[name] for name in ("strategy", "step", "unit")},
        attrs={
            "units": "1",
            "long_name": "share of resampled documents in which the unit is in the best set",
        },
    )


def rank_correlation(dataset: xr.Dataset) -> xr.DataArray:
    """Return how alike two texts rank the candidates that lack the same number of units.

    Parameters
    ----------
    dataset : Dataset
        Dataset of a search on several texts.

    Returns
    -------
    DataArray
        Spearman's rank correlation of the candidates' mean scores on two texts, (step, text,
        text_to). The scores are of sequences of the search on which all candidates of that size
        were measured: with a race, the first ones. NaN where a text has none, there are fewer than
        4 candidates, or a text ranks all alike.
    """
    texts, steps = _texts(dataset), dataset["step"].values
    correlations = np.full((len(steps), len(texts), len(texts)), np.nan)
    for at, step in enumerate(steps):
        values, source = _of_size(dataset, int(step))
        # What was never measured, or never finite, takes no sequence from the others.
        values = values[np.isfinite(values).any(1)]
        common = np.isfinite(values).all(0)
        means = [values[:, common & (source == text)] for text in texts]
        for one, other in np.ndindex(correlations.shape[1:]):
            correlations[at, one, other] = _spearman(means[one], means[other])
    return xr.DataArray(
        correlations,
        dims=("step", "text", "text_to"),
        coords={"step": dataset["step"], "text": texts, "text_to": texts},
        attrs={
            "units": "1",
            "long_name": "Spearman's rank correlation of candidates between two texts",
        },
    )


def chosen_by_text(dataset: xr.Dataset) -> xr.DataArray:
    """Return the units that each text alone would remove, (step, text); empty where none is known.

    It is the best of the candidates that lack as many units, whichever method weighed them, among
    those that were measured on the most sequences of the text.
    """
    texts, steps = _texts(dataset), dataset["step"].values
    chosen = np.full((len(steps), len(texts)), "", dtype=object)
    for at, step in enumerate(steps):
        values, source = _of_size(dataset, int(step))
        removed = dataset["removed"].values[dataset["size"].values == step]
        for place, text in enumerate(texts):
            own = values[:, source == text]
            count = np.isfinite(own).sum(1)
            if not count.any():
                continue
            rivals = np.flatnonzero(count == count.max())
            best = np.nanmean(own[rivals], 1).argmin()
            chosen[at, place] = str(removed[rivals[best]])
    return xr.DataArray(
        chosen, dims=("step", "text"), coords={"step": dataset["step"], "text": texts}
    )


def _texts(dataset: xr.Dataset) -> list[str]:
    """Return the names of the texts, in the order of their first sequences."""
    return list(dict.fromkeys(map(str, dataset["source"].values)))


def _of_size(dataset: xr.Dataset, size: int) -> tuple[NDArray[np.float64], NDArray[np.object_]]:
    """Return scores (candidate, sequence) of the candidates of a size, and texts (sequence)."""
    values = searched(scores(dataset)).transpose("candidate", "sequence")
    of_size = values.values[dataset["size"].values == size].astype(np.float64)
    return of_size, values["source"].values.astype(object)


def _removes(dataset: xr.Dataset) -> NDArray[np.bool_]:
    """Return which units each candidate lacks, (candidate, unit)."""
    units = list(map(str, dataset["unit"].values))
    removed = np.zeros((dataset.sizes["candidate"], len(units)), bool)
    for candidate, text in enumerate(dataset["removed"].values):
        lacking = set(str(text).split())
        removed[candidate] = [unit in lacking for unit in units]
    return removed


def _spearman(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the rank correlation of the means of two arrays (candidate, sequence)."""
    if len(one) < FEWEST or not one.size or not other.size:
        return np.nan
    means = one.mean(1), other.mean(1)
    # Scipy warns of what has no order.
    if not np.ptp(means[0]) or not np.ptp(means[1]):
        return np.nan
    return float(scipy.stats.spearmanr(*means).statistic)
