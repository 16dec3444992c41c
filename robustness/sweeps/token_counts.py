"""How often each token is the most likely one of a schedule, as a trace counts it.

Counts come as those that are not 0, one schedule after the other: see `readings.count_tokens`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustness.ndif import answer

SIZES, TOKENS, COUNTS = "top_sizes", "top_tokens", "top_counts"


def outputs(schedules: int, queries: int) -> answer.Wanted:
    """Return the shapes of the counts of some schedules, each read at a number of queries."""
    different = answer.AtMost(schedules * queries)
    return {
        SIZES: ((schedules,), answer.INTEGERS),
        TOKENS: ((different,), answer.INTEGERS),
        COUNTS: ((different,), answer.INTEGERS),
    }


def check(measured: Mapping[str, NDArray[Any]], vocabulary: int, queries: int) -> None:
    """Check counts of `outputs`, which a server sent.

    Raises
    ------
    Refusal
        If they are no counts of a vocabulary's tokens at that many queries.
    """
    sizes, tokens, counts = (measured[name] for name in (SIZES, TOKENS, COUNTS))
    if sizes.min() < 0 or not sizes.sum(dtype=float) == len(tokens) == len(counts):
        raise answer.unexpected("its counts are not one for each token")
    if not len(tokens):
        return
    if not 0 <= tokens.min() <= tokens.max() < vocabulary:
        raise answer.unexpected(f"a token is {tokens.max()}")
    run = np.repeat(np.arange(len(sizes)), sizes)
    if (np.diff(run * vocabulary + tokens) <= 0).any():
        raise answer.unexpected("a token is counted twice")
    # The float sums of counts so large that integers would overflow are too large, too.
    if counts.min() < 1 or np.bincount(run, counts).max() > queries:
        raise answer.unexpected("its counts are not of the tokens that were asked for")


def add(tally: NDArray[np.int32], measured: Mapping[str, NDArray[Any]]) -> None:
    """Add counts to those of all tokens (schedule, token)."""
    run = np.repeat(np.arange(len(tally)), measured[SIZES])
    # No token is in a schedule's counts twice, so that none of these additions is lost.
    tally[run, measured[TOKENS]] += measured[COUNTS].astype(np.int32)
