"""How text goes through a model: how much at once, and which of its positions are read."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from robustness.errors import Refusal
from robustness.files.metrics import READOUT_TOKENS
from robustness.models.model import Model
from robustness.text.corpus import Corpus
from robustness.text.settings import SHORTEST_SEQUENCE
from robustness.trace.types import QueryPositions

BATCH_TOKENS = {"cpu": 1024}
"""Tokens of text in a trace where none are asked for, by kind of device."""

BATCH_TOKENS_ELSEWHERE = 8192

STACKED_TOKENS = {"cpu": 2048}
"""Tokens that go through a block together where no cap is asked for, by kind of device."""

STACKED_TOKENS_ELSEWHERE = 65536

SCHEDULES_PER_GROUP = 256
"""Maximum number of schedules in a group of a plan: about as many states are alive at once."""


def tokens_of_text(model: Model) -> int:
    """Return how many tokens of text a trace has where no number is asked for."""
    return BATCH_TOKENS.get(model.identity["device"], BATCH_TOKENS_ELSEWHERE)


def state_cap(model: Model, tokens: int) -> int:
    """Return how many states of so many tokens go through a block together."""
    stacked = STACKED_TOKENS.get(model.identity["device"], STACKED_TOKENS_ELSEWHERE)
    return max(1, stacked // tokens)


def batches(
    lengths: Sequence[int], tokens: int, begin: int = 0, bends: Sequence[int] = ()
) -> list[slice]:
    """Divide texts, in order of length, into batches that have so many tokens when filled up.

    No batch has texts on both sides of a bend (see `Model.bends`): a short one, filled up, would be
    taken for a long one.
    """
    found = []
    while begin < len(lengths):
        end = begin + 1
        while (
            end < len(lengths)
            and (end + 1 - begin) * lengths[end] <= tokens
            and _side(lengths[end], bends) == _side(lengths[begin], bends)
        ):
            end += 1
        found.append(slice(begin, end))
        begin = end
    return found


def _side(length: int, bends: Sequence[int]) -> int:
    """Return how many bends a length is above."""
    return sum(length > bend for bend in bends)


def rest(parts: Sequence[slice], done: Sequence[int]) -> list[slice]:
    """Return what is left of batches, given how many sequences are done of one or several runs.

    A run may have begun with other batches, so that one of these is done in part.

    >>> rest([slice(0, 4), slice(4, 8)], [2])
    [slice(2, 4, None), slice(4, 8, None)]
    """
    found = []
    for rows in parts:
        bounds = sorted({rows.start, rows.stop, *done})
        inside = [at for at in bounds if max(rows.start, min(done)) <= at <= rows.stop]
        found += [slice(first, last) for first, last in pairwise(inside)]
    return found


def check_corpus(model: Model, corpus: Corpus) -> None:
    """Refuse a corpus whose sequences are too short to be measured, or not for this model."""
    if corpus.lengths.min() < SHORTEST_SEQUENCE:
        raise Refusal(f"a sequence takes at least {SHORTEST_SEQUENCE} tokens")
    check_tokens(model, torch.from_numpy(corpus.tokens))
    shortest, longest = int(corpus.lengths.min()), int(corpus.lengths.max())
    if _side(shortest, model.bends) != _side(longest, model.bends):
        bend = next(bend for bend in model.bends if shortest <= bend < longest)
        raise Refusal(
            f"documents of {shortest} and of {longest} tokens cannot be measured together: above "
            f"{bend} tokens {model.name} has other rotary embeddings, for shorter documents of the "
            f"same batch too: ask for `context` {bend} or less, or take windows"
        )


def check_tokens(model: Model, tokens: Tensor) -> None:
    """Refuse token ids that this model does not have, or more in a sequence than it takes."""
    if tokens.ndim != 2 or not tokens.numel():
        raise Refusal(f"tokens are of shape (sequence, token), not {tuple(tokens.shape)}")
    if model.context is not None and tokens.shape[1] > model.context:
        raise Refusal(
            f"sequences of {tokens.shape[1]} tokens are longer than {model.name} takes: "
            f"ask for `context` {model.context} or less"
        )
    if tokens.max() >= model.vocabulary or tokens.min() < 0:
        raise Refusal(
            f"there is no token {int(tokens.max() if tokens.min() >= 0 else tokens.min())}: "
            f"{model.name} has tokens 0 to {model.vocabulary - 1}"
        )


def query_positions(corpus: Corpus, rows: slice, tokens: Tensor) -> QueryPositions:
    """Return which query positions are read, and which of them count for what.

    The query at position t predicts token t + 1. The first and the last query position are left
    out. In the alignment of the paper's authors, loss takes all that have a next token, and the
    other readouts all but the first.
    """
    width = tokens.shape[1]
    lengths = torch.from_numpy(corpus.lengths[rows]).to(tokens.device)[:, None]
    first, last = (0, width) if corpus.authors_alignment else (1, width - 1)
    query = torch.arange(first, last, device=tokens.device)
    following = torch.cat([tokens[:, 1:], tokens[:, -1:]], dim=1)
    compared = (query >= 1) & (query < lengths - (0 if corpus.authors_alignment else 1))
    predicted = (query >= first) & (query < lengths - 1)
    return {
        "targets": following[:, first:last],
        "first": first,
        "last": last,
        "compared": compared,
        "predicted": predicted,
        "readout_tokens": READOUT_TOKENS,
    }
