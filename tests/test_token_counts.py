"""The most likely tokens leave a trace as counts, and a server's counts are checked."""

import numpy as np
import pytest
import torch

from robustness.errors import Refusal
from robustness.ndif import answer
from robustness.sweeps import token_counts
from robustness.trace.readings import count_tokens

VOCABULARY, SCHEDULES, QUERIES = 50, 3, 40


@pytest.fixture
def top():
    """The most likely tokens of three schedules, of which one has none that is known."""
    drawn = torch.randint(-1, VOCABULARY, (SCHEDULES, 4, 10), generator=torch.Generator())
    drawn[1] = -1
    return drawn.int()


@pytest.fixture
def counted(top):
    return {name: value.numpy() for name, value in count_tokens(top).items()}


def test_counts_are_those_of_every_token_and_no_more_numbers_than_tokens(top, counted):
    tally = np.ones((SCHEDULES, VOCABULARY), np.int32)
    token_counts.check(counted, VOCABULARY, QUERIES)
    token_counts.add(tally, counted)
    for schedule, token in np.ndindex(tally.shape):
        assert tally[schedule, token] == 1 + int((top[schedule] == token).sum())
    assert counted["top_sizes"][1] == 0 and (counted["top_counts"] > 1).any()
    wanted = token_counts.outputs(SCHEDULES, QUERIES)
    assert answer.take(count_tokens(top), wanted).keys() == wanted.keys()
    assert len(counted["top_tokens"]) < (top >= 0).sum()


def test_more_tokens_than_there_are_queries_are_not_taken(top):
    wanted = token_counts.outputs(SCHEDULES, 5)
    with pytest.raises(Refusal, match="'top_tokens' is of shape"):
        answer.take(count_tokens(top), wanted)


WRONG = {
    "a size below 0": ("top_sizes", [-1, 0, 4], "not one for each"),
    "a size too large": ("top_sizes", [2, 0, 2**62], "not one for each"),
    "a count less": ("top_counts", [1, 1], "not one for each"),
    "a token below 0": ("top_tokens", [-1, 4, 3], "a token is"),
    "no such token": ("top_tokens", [3, VOCABULARY, 3], "a token is"),
    "a token twice": ("top_tokens", [4, 4, 3], "counted twice"),
    "no count": ("top_counts", [1, 0, 5], "not of the tokens"),
    "more than all": ("top_counts", [20, 21, 5], "not of the tokens"),
    "beyond integers": ("top_counts", [2**62, 2**62, 5], "not of the tokens"),
}


@pytest.mark.parametrize("case", WRONG)
def test_counts_of_something_else_are_refused(case):
    name, value, expected = WRONG[case]
    right = {"top_sizes": [2, 0, 1], "top_tokens": [3, 4, 3], "top_counts": [20, 20, 5]}
    arrays = {key: np.array(value) for key, value in right.items()}
    token_counts.check(arrays, VOCABULARY, QUERIES)
    with pytest.raises(Refusal, match=expected):
        token_counts.check(arrays | {name: np.array(value)}, VOCABULARY, QUERIES)
