"""Stability of a search: which units other documents, or other texts, would have removed.

A race measures candidates on as much text as it takes to choose, and only what was measured on the
same sequences as the leaders can win against them. What the race dropped before, or no method
weighed, might be the best one on other documents and has no part here: the probabilities are those
of a choice among the leaders. They are about the sample of documents, and not about texts of
another kind, which `rank_correlation` compares.
"""

from dataclasses import dataclass

import numpy as np
import scipy  # its parts are loaded when they are used: a search without this needs none
import xarray as xr
from numpy.typing import NDArray

from robustness.files.kinds.searches import CHOSEN, NOT_RACED, NOT_WEIGHED, TIED
from robustness.pruning.scores import scores, searched
from robustness.statistics.uncertainty import DRAWS, bootstrap_means

FEWEST = 4
"""Minimum number of candidates with a rank correlation."""

FOLLOWING = ("greedy", "beam")
"""Methods that extend what they have chosen before, whose probabilities are lower bounds."""

NESTED = "one-shot"
"""Method that removes the first units of one order."""


def probability(dataset: xr.Dataset, *, draws: int = DRAWS, seed: int = 0) -> xr.DataArray:
    """Return how often each unit is in the best set of each size when documents are drawn again.

    A set is chosen again in each sample among the candidates of its step that have as many units as
    the step says, were raced, and were measured on all sequences that the chosen one and those that
    tied with it share. What this stands for depends on the method:

    - `span` and `exhaustive` weigh all sets that they may choose, `pairwise` the finalists of its
      quadratic model, which is not fitted again.
    - `greedy` and `beam` weigh only sets that extend those of the step before. Samples are the same
      at all steps, and a sample in which the sets to extend are others leaves what was measured:
      from the next step on only those units count that all of these sets lack. The shares are
      therefore lower bounds, which add up to less than the number of units. A unit that greedy has
      removed keeps the share of the step that removed it.
    - `one-shot` orders single units anew.

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
        Share of the samples in which the best set lacks a unit, (strategy, step, unit). NaN where a
        method chose nothing at a step, weighed one set alone, or read fewer than two documents, and
        at the steps after it of a method that extends sets.
    """
    removed = _removes(dataset)
    shares = np.full((*dataset["chosen"].shape, removed.shape[1]), np.nan)
    for at, method in enumerate(map(str, dataset["strategy"].values)):
        ranked = _ranked(dataset, method, draws, seed)
        if method in FOLLOWING:
            width = int(dataset.attrs["beam"]) if method == "beam" else 1
            _follow(ranked, removed, width, shares[at])
        elif method == NESTED:
            if 0 in ranked:
                _nest(ranked[0], removed, dataset["chosen"].sel(strategy=method), shares[at])
        else:
            for step, order in ranked.items():
                shares[at, step] = removed[order[1:, 0]].mean(0)
    return xr.DataArray(
        shares,
        dims=("strategy", "step", "unit"),
        coords={name: dataset[name] for name in ("strategy", "step", "unit")},
        attrs={
            "units": "1",
            "long_name": "share of resampled documents in which the unit is in the best set",
        },
    )


@dataclass(frozen=True, eq=False)
class _Choice:
    """What a method chooses from at a step."""

    rivals: NDArray[np.int64]
    """Indices of the candidates, that of the chosen one first."""
    rows: NDArray[np.bool_]
    """Which sequences of the search the leaders were measured on."""


def _ranked(
    dataset: xr.Dataset, method: str, draws: int, seed: int
) -> dict[int, NDArray[np.int64]]:
    """Return candidates of steps in the order of each sample (1 + draw, place), the best first.

    Row 0 is of the documents themselves. Steps without a choice are missing.
    """
    values = searched(scores(dataset)).transpose("candidate", "sequence")
    choices = _choices(dataset, values, method)
    together = np.any([choice.rows for choice in choices.values()], axis=0)
    ranked = {}
    for step, choice in choices.items():
        # One sample of documents for all steps, where these depend on each other.
        drawn = together if method in FOLLOWING else choice.rows
        # The same sums have the order of the means. A sample that has none of a step's documents,
        # at most one in 3,000 after a race, agrees with the choice.
        read = values[choice.rivals].where(choice.rows, 0.0)[:, drawn]
        means = bootstrap_means(read, draws=draws, seed=seed).transpose("draw", "candidate").values
        if np.isfinite(means).all():
            means[0, 0] = -np.inf
            ranked[step] = choice.rivals[np.argsort(means, 1, kind="stable")]
    return ranked


def _choices(dataset: xr.Dataset, values: xr.DataArray, method: str) -> dict[int, _Choice]:
    """Return what a method chooses from, by the index of the step."""
    of_method = dataset.sel(strategy=method)
    standings = of_method["standing"].transpose("step", "candidate").values
    candidates = list(map(str, dataset["candidate"].values))
    known, choices = np.isfinite(values.values), dict[int, _Choice]()
    for step, (best, standing) in enumerate(
        zip(of_method["chosen"].values, standings, strict=True)
    ):
        # Rounds that prepare a step weigh smaller sets too.
        alike = dataset["size"].values == dataset["step"].values[step]
        raced = alike & ~np.isin(standing, (NOT_WEIGHED, NOT_RACED))
        # A method that weighs one set alone has no choice that other documents could change.
        if str(best) not in candidates or raced.sum() < 2:
            continue
        chosen = candidates.index(str(best))
        # Another method may have read more of some leaders.
        leads = np.union1d(np.flatnonzero(raced & np.isin(standing, (TIED, CHOSEN))), chosen)
        rows = known[leads].all(0)
        others = np.setdiff1d(np.flatnonzero(raced & known[:, rows].all(1)), chosen)
        if rows.any():
            choices[step] = _Choice(np.concatenate([[chosen], others]), rows)
    return choices


def _follow(
    ranked: dict[int, NDArray[np.int64]],
    removed: NDArray[np.bool_],
    width: int,
    shares: NDArray[np.float64],
) -> None:
    """Set the shares (step, unit) of a method that extends the best sets of the step before."""
    samples = len(next(iter(ranked.values()), ()))
    follows = np.ones(samples, bool)
    certain = np.zeros((samples, removed.shape[1]), bool)
    for place, (step, order) in enumerate(ranked.items()):
        # After a step without a choice nothing is known.
        if place != step:
            break
        best = np.where(follows[:, None], removed[order[:, 0]], certain)
        shares[step] = best[1:].mean(0)
        extended = np.sort(order[:, :width], 1)
        leaves = follows & (extended != extended[0]).any(1)
        certain[leaves] = removed[extended[leaves]].all(1)
        follows &= ~leaves


def _nest(
    order: NDArray[np.int64],
    removed: NDArray[np.bool_],
    chosen: xr.DataArray,
    shares: NDArray[np.float64],
) -> None:
    """Set the shares (step, unit) of a method that removes the first single units of an order."""
    for step, size in enumerate(map(int, chosen["step"].values)):
        if str(chosen.values[step]) and size <= order.shape[1]:
            shares[step] = removed[order[1:, :size]].any(1).mean(0)


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
        _, values, source = _of_size(dataset, int(step))
        means = [values[:, source == text] for text in texts]
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
    """Return the units that each text alone would remove, (step, text).

    It is the best of the candidates that lack as many units, whichever method weighed them, on the
    sequences of the text on which all of these were measured: with a race, the first ones. Empty
    where a text has none, or fewer than two candidates were measured.
    """
    texts, steps = _texts(dataset), dataset["step"].values
    chosen = np.full((len(steps), len(texts)), "", dtype=object)
    for at, step in enumerate(steps):
        removed, values, source = _of_size(dataset, int(step))
        for place, text in enumerate(texts):
            own = values[:, source == text]
            if len(own) > 1 and own.size:
                chosen[at, place] = str(removed[own.mean(1).argmin()])
    return xr.DataArray(
        chosen, dims=("step", "text"), coords={"step": dataset["step"], "text": texts}
    )


def _texts(dataset: xr.Dataset) -> list[str]:
    """Return the names of the texts, in the order of their first sequences."""
    return list(dict.fromkeys(map(str, dataset["source"].values)))


def _of_size(
    dataset: xr.Dataset, size: int
) -> tuple[NDArray[np.object_], NDArray[np.float64], NDArray[np.object_]]:
    """Return what candidates of a size lack (candidate), and their scores (candidate, sequence).

    They are on the sequences that all of them were measured on; the last value is their texts.
    """
    scored = searched(scores(dataset)).transpose("candidate", "sequence")
    # What was never measured, or never finite, takes no sequence from the others.
    rows = (dataset["size"].values == size) & np.isfinite(scored.values).any(1)
    values = scored.values[rows].astype(np.float64)
    common = np.isfinite(values).all(0)
    texts = scored["source"].values.astype(object)
    return dataset["removed"].values[rows], values[:, common], texts[common]


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
