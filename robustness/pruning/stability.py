"""Stability of a search: which units other documents, or other texts, would have removed.

Only candidates that were measured on the whole text of the search can win. A candidate that a race
dropped early, or that no method weighed, might be the best one on other documents and has no part
here: the probabilities are those of a choice among the leaders. They are about the sample of
documents, and not about texts of another kind, which `rank_correlation` compares.
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
        Share of the samples in which the best of the candidates that a method weighed at a step,
        and that were measured on all sequences of the search, lacks a unit, (method, step, unit).
        NaN where a step has no such candidate, or the search fewer than two documents.
    """
    means = bootstrap_means(searched(scores(dataset)), draws=draws, seed=seed)
    # Draw 0 is the documents themselves.
    drawn = means.transpose("draw", "candidate").values[1:]
    weighed = dataset["standing"].transpose("method", "step", "candidate").values > NOT_WEIGHED
    removed = _removes(dataset)
    shares = np.full((*weighed.shape[:2], removed.shape[1]), np.nan)
    for method, step in np.ndindex(weighed.shape[:2]):
        rivals = np.flatnonzero(weighed[method, step] & np.isfinite(drawn).all(0))
        if rivals.size:
            best = rivals[drawn[:, rivals].argmin(1)]
            shares[method, step] = removed[best].mean(0)
    return xr.DataArray(
        shares,
        dims=("method", "step", "unit"),
        coords={name: dataset[name] for name in ("method", "step", "unit")},
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
        Spearman's rank correlation of the candidates' mean scores on two texts, over candidates
        that were measured on all sequences of the search in both, (step, text, text_to). NaN where
        there are fewer than 4, or one of the texts ranks all alike.
    """
    means = _means_by_text(dataset)
    texts, steps = means["text"].values, dataset["step"].values
    correlations = np.full((len(steps), len(texts), len(texts)), np.nan)
    for at, step in enumerate(steps):
        of_step = means.values[:, dataset["size"].values == step]
        for one, other in np.ndindex(correlations.shape[1:]):
            correlations[at, one, other] = _spearman(of_step[one], of_step[other])
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

    It is the best of the candidates that lack as many units, whichever method weighed them.
    """
    means = _means_by_text(dataset)
    steps, texts = dataset["step"].values, means["text"].values
    chosen = np.full((len(steps), len(texts)), "", dtype=object)
    for at, text in np.ndindex(chosen.shape):
        rivals = (dataset["size"].values == steps[at]) & np.isfinite(means.values[text])
        if rivals.any():
            best = np.where(rivals, means.values[text], np.inf).argmin()
            chosen[at, text] = str(dataset["removed"].values[best])
    return xr.DataArray(
        chosen, dims=("step", "text"), coords={"step": dataset["step"], "text": texts}
    )


def _removes(dataset: xr.Dataset) -> NDArray[np.bool_]:
    """Return which units each candidate lacks, (candidate, unit)."""
    units = list(map(str, dataset["unit"].values))
    removed = np.zeros((dataset.sizes["candidate"], len(units)), bool)
    for candidate, text in enumerate(dataset["removed"].values):
        lacking = set(str(text).split())
        removed[candidate] = [unit in lacking for unit in units]
    return removed


def _means_by_text(dataset: xr.Dataset) -> xr.DataArray:
    """Return the mean score of every candidate on each text of the search, (text, candidate)."""
    values = searched(scores(dataset))
    texts = _in_order(values["source"].values)
    means = []
    for text in texts:
        own = values.isel(sequence=values["source"].values == text)
        means.append(own.mean("sequence", skipna=False, dtype=np.float64))
    return xr.concat(means, xr.Variable("text", texts)).transpose("text", "candidate")


def _in_order(labels: NDArray[np.object_]) -> list[str]:
    """Return the different labels in the order of their first appearance."""
    return list(dict.fromkeys(map(str, labels)))


def _spearman(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    both = np.isfinite(one) & np.isfinite(other)
    one, other = one[both], other[both]
    # Without this check scipy warns of what has no order.
    if len(one) < FEWEST or not np.ptp(one) or not np.ptp(other):
        return np.nan
    return float(scipy.stats.spearmanr(one, other).statistic)
