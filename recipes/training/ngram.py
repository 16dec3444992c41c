"""Unigram and interpolated trigram models of token ids: what a trained model has to beat."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

EM_STEPS = 30


def unigram_loss(train: Ids, windows: Ids, vocabulary: int) -> float:
    """Mean loss of an add-one unigram model, nats per token.

    Parameters
    ----------
    train : int64 array of shape (token,)
        What is counted.
    windows : int64 array of shape (sequence, token)
        What is predicted: all tokens but the first of each sequence.
    vocabulary : int
        How many tokens there are.
    """
    counts = np.bincount(train, minlength=vocabulary) + 1.0
    return float(-np.log(counts[windows[:, 1:]] / counts.sum()).mean())


def trigram_loss(train: Ids, windows: Ids, vocabulary: int) -> float:
    """Mean loss of a trigram model interpolated with lower orders, nats per token.

    Relative frequencies of orders 3, 2, 1 and 0 are mixed with fixed weights (Jelinek and Mercer,
    1980); a context never seen leaves its order's share to the next lower one. The weights are
    those that suit `windows` best, found by expectation maximisation on them: an advantage that
    no other model is given.

    Parameters
    ----------
    train, windows, vocabulary
        As for `unigram_loss`.
    """
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
    key = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        key = key * vocabulary + column
    return key


def _count(grams: Ids, wanted: Ids) -> NDArray[np.float64]:
    found, counts = np.unique(grams, return_counts=True)
    place = np.minimum(np.searchsorted(found, wanted), len(found) - 1)
    return np.where(found[place] == wanted, counts[place], 0).astype(np.float64)
