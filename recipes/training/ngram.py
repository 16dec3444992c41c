"""Unigram and interpolated trigram models of token ids, which a trained model has to beat."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

EM_STEPS = 30
"""Number of steps of expectation maximisation."""


def unigram_loss(train: Ids, windows: Ids, vocabulary: int) -> float:
    """Return the mean loss of an add-one unigram model, in nats per token.

    Parameters
    ----------
    train : int64 array of shape (token,)
        Tokens that are counted.
    windows : int64 array of shape (sequence, token)
        Sequences of which all tokens but the first are predicted.
    vocabulary : int
        Number of distinct tokens.
    """
    counts = np.bincount(train, minlength=vocabulary) + 1.0
    return float(-np.log(counts[windows[:, 1:]] / counts.sum()).mean())


def trigram_loss(train: Ids, windows: Ids, vocabulary: int) -> float:
    """Return the mean loss of a trigram model interpolated with lower orders, in nats per token.

    Relative frequencies of orders 3, 2, 1 and 0 are mixed with fixed weights (Jelinek and Mercer,
    1980). A context that was never seen leaves the share of its order to the next lower one. The
    weights are fitted to `windows` by expectation maximisation, an advantage that no other model
    has.

    Parameters
    ----------
    train, windows, vocabulary
        As for `unigram_loss`.
    """
    # The first token has only one before it: it is repeated, so that every token has two.
    padded = np.concatenate([windows[:, :1], windows], axis=1)
    before, last, token = (padded[:, i : i + windows.shape[1] - 1].ravel() for i in range(3))
    one = np.bincount(train, minlength=vocabulary) / len(train)
    estimates = [np.full(len(token), 1 / vocabulary), one[token]]
    for context, order in (((last,), 2), ((before, last), 3)):
        grams = _keys([train[i : len(train) - order + 1 + i] for i in range(order)], vocabulary)
        seen = _count(grams, _keys([*context, token], vocabulary))
        total = _count(grams // vocabulary, _keys(context, vocabulary))
        lower = estimates[-1]
        estimates.append(np.where(total > 0, seen / np.maximum(total, 1), lower))
    stacked = np.stack(estimates)
    weights = np.full(len(stacked), 1 / len(stacked))
    for _ in range(EM_STEPS):
        share = weights[:, None] * stacked
        weights = (share / share.sum(0)).mean(1)
    return float(-np.log(weights @ stacked).mean())


def _keys(columns: Sequence[Ids], vocabulary: int) -> Ids:
    """Return n-grams as one number each, with the columns as its digits."""
    key = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        key = key * vocabulary + column
    return key


def _count(grams: Ids, wanted: Ids) -> NDArray[np.float64]:
    """Return how often each wanted n-gram is among some."""
    distinct, counts = np.unique(grams, return_counts=True)
    # A number above all of them would be looked up past the end.
    place = np.minimum(np.searchsorted(distinct, wanted), len(distinct) - 1)
    return np.where(distinct[place] == wanted, counts[place], 0).astype(np.float64)
