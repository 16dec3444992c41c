"""Races: candidates are measured batch by batch, and those that are clearly worse are dropped.

After each batch, the scores of all candidates on the same sequences are compared with those of the
leader. A candidate is dropped if its mean difference exceeds q standard errors, clustered by
document, where q is the quantile of Student's t at a probability that is divided by the number of
comparisons (Bonferroni). Scores on the same text vary together, so differences are much more
certain than means: most candidates leave after a few batches. This is a race as of Maron and Moore
(1994, Hoeffding Races), with paired t statistics as of Birattari et al. (2002, F-Race).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy  # its parts are loaded when they are used
import xarray as xr
from numpy.typing import NDArray

from robustness.files.kinds.searches import CHOSEN, DROPPED, NOT_RACED, TIED
from robustness.pruning.units import Unit
from robustness.statistics.uncertainty import effective_documents, standard_error

Cut = frozenset[Unit]
"""Units that are removed together."""

FEWEST_DOCUMENTS = 8
"""Minimum number of documents before a candidate is dropped: a t statistic of fewer is wild."""


@dataclass(frozen=True)
class Round:
    """How the candidates of one step came out."""

    candidates: tuple[Cut, ...]
    standing: tuple[int, ...]
    """How each candidate came out: `DROPPED`, `TIED` with the best, `CHOSEN`, the best, or
    `NOT_RACED`."""
    ranking: tuple[Cut, ...]
    """Candidates that were not dropped, the best first."""
    means: tuple[float, ...]
    """Mean scores of these in nats, over the sequences that all of them were measured on."""
    tokens_read: int
    """Number of tokens that candidates were measured on, added up."""
    tokens_in_full: int
    """Number of tokens if each had been measured on all of the searched part."""
    applications: int
    """Number of blocks and sublayers applied to single sequences."""

    @property
    def best(self) -> Cut:
        """The best candidate."""
        return self.ranking[0]

    @property
    def raced(self) -> int:
        """Number of candidates that competed."""
        return sum(standing != NOT_RACED for standing in self.standing)

    def mean_of(self, candidates: Sequence[Cut]) -> NDArray[np.float64]:
        """Return the mean scores of candidates that were not dropped."""
        by_cut = dict(zip(self.ranking, self.means, strict=True))
        return np.array([by_cut[candidate] for candidate in candidates])

    def after(self, *earlier: "Round") -> "Round":
        """Return this round with the candidates and the costs of others that prepared it."""
        standing = dict(zip(self.candidates, self.standing, strict=True))
        for other in earlier:
            for candidate in other.candidates:
                standing.setdefault(candidate, NOT_RACED)
        return replace(
            self,
            candidates=tuple(standing),
            standing=tuple(standing.values()),
            tokens_read=self.tokens_read + sum(other.tokens_read for other in earlier),
            tokens_in_full=self.tokens_in_full + sum(other.tokens_in_full for other in earlier),
            applications=self.applications + sum(other.applications for other in earlier),
        )


def separated(
    scores: NDArray[np.float64],
    leader: int,
    documents: NDArray[Any],
    level: float,
    comparisons: int,
) -> NDArray[np.bool_]:
    """Return which candidates are worse than a leader by more than chance would have it.

    Parameters
    ----------
    scores : float64 array of shape (candidate, sequence)
        Scores on the same sequences, lower ones better; infinite where a prediction was no number.
    leader : int
        Index of the leader.
    documents : array of shape (sequence,)
        Document of each sequence.
    level : float
        Probability that any is separated by chance.
    comparisons : int
        Number of comparisons that share this probability.

    Returns
    -------
    bool array of shape (candidate,)
        Whether each is separated; the leader never is.
    """
    lost: NDArray[np.bool_] = np.logical_not(np.isfinite(scores).all(axis=1))
    lost[leader] = False
    if np.unique(documents).size < FEWEST_DOCUMENTS or not np.isfinite(scores[leader]).all():
        return lost
    finite = np.where(np.isfinite(scores), scores, 0.0)
    differences = xr.DataArray(
        finite - finite[leader],
        dims=("candidate", "sequence"),
        coords={"document": ("sequence", documents)},
    )
    error = standard_error(differences).values
    freedom = np.clip(effective_documents(differences).values - 1, 1, None)
    multiple = scipy.stats.t.ppf(1 - level / max(1, comparisons), freedom)
    worse: NDArray[np.bool_] = differences.mean("sequence").values > multiple * error
    return lost | worse


def order_of(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the indices of candidates by their mean score, the lowest first."""
    return np.argsort(scores.mean(1), kind="stable")


@dataclass(frozen=True)
class Finish:
    """How a race ended."""

    ranking: list[Cut]
    """Candidates that were not dropped, the best first."""
    standing: list[int]
    """How each of these compares with the best: `CHOSEN`, `TIED` or `DROPPED`."""
    means: list[float]
    """Mean score of each of these."""
    measured: list[list[Cut]]
    """Candidates that were measured on each batch."""


def race(
    candidates: Sequence[Cut],
    batches: int,
    measure: Callable[[Sequence[Cut], int], NDArray[np.float64]],
    documents: Callable[[int], NDArray[Any]],
    keep: int | None,
    level: float,
) -> Finish:
    """Measure candidates batch by batch, until as few as wanted are left or the text ends.

    Parameters
    ----------
    candidates : sequence of frozenset
        Candidates.
    batches : int
        Number of batches.
    measure : callable
        Function of some candidates and the index of a batch, which measures them on it and returns
        their scores on all sequences so far (candidate, sequence).
    documents : callable
        Function from the index of a batch to the documents of all sequences so far.
    keep : int or None
        Number of candidates that are wanted; those that cannot be told from the last of them stay.
        None measures all candidates on all batches.
    level : float
        As for `separated`.
    """
    alive, measured = list(candidates), list[list[Cut]]()
    scores, known = np.zeros((0, 0)), np.zeros(0)
    for batch in range(batches):
        scores, known = measure(alive, batch), documents(batch)
        measured.append(alive)
        if keep is None:
            continue
        if len(alive) > keep:
            leader = int(order_of(scores)[keep - 1])
            dropped = separated(scores, leader, known, level, len(candidates) - keep)
            stays = np.flatnonzero(~dropped)
            alive, scores = [alive[index] for index in stays], scores[stays]
        if len(alive) <= keep and np.unique(known).size >= FEWEST_DOCUMENTS:
            break
    order = order_of(scores)
    worse = separated(scores, int(order[0]), known, level, len(candidates) - 1)
    standing = [DROPPED if worse[index] else TIED for index in order]
    standing[0] = CHOSEN
    means = scores.mean(1)[order].tolist()
    return Finish([alive[index] for index in order], standing, means, measured)
