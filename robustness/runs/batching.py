"""Batches of text, and the query positions that are read in them."""

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

SCHEDULES_PER_GROUP = 256
"""Maximum number of schedules in a group of a plan: about as many states are alive at once."""


def batches(
    lengths: Sequence[int], tokens: int, begin: int = 0, bends: Sequence[int] = ()
) -> list[slice]:
    """Divide sequences, which are ordered by length, into batches of at most `tokens` tokens.

    Tokens are counted after padding. No batch has sequences on both sides of a bend (see
    `Model.bends`): a short one, padded, would be taken for a long one.
    """
    divided = []
    while begin < len(lengths):
        end = begin + 1
        # The next sequence is the longest so far, and all others are padded to it.
        while (
            end < len(lengths)
            and (end + 1 - begin) * lengths[end] <= tokens
            and _side(lengths[end], bends) == _side(lengths[begin], bends)
        ):
            end += 1
        divided.append(slice(begin, end))
        begin = end
    return divided


def _side(length: int, bends: Sequence[int]) -> int:
    """Return the number of bends that a length is above."""
    return sum(length > bend for bend in bends)


def rest(parts: Sequence[slice], done: Sequence[int]) -> list[slice]:
    """Return the batches that remain when one or several runs have done their first sequences.

    A run may have begun with other batches, so that one of these is done in part.

    >>> rest([slice(0, 4), slice(4, 8)], [2])
    [slice(2, 4, None), slice(4, 8, None)]
    """
    remaining = []
    for rows in parts:
        first = max(rows.start, min(done))
        # Cut where any of the runs stands, so that a batch is either done or not in each.
        bounds = sorted({rows.start, rows.stop, *done})
        inside = [bound for bound in bounds if first <= bound <= rows.stop]
        remaining += [slice(*pair) for pair in pairwise(inside)]
    return remaining


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
    """Refuse token ids outside the vocabulary, and sequences longer than the model's context."""
    if tokens.ndim != 2 or not tokens.numel():
        raise Refusal(f"tokens are of shape (sequence, token), not {tuple(tokens.shape)}")
    if model.context is not None and tokens.shape[1] > model.context:
        raise Refusal(
            f"sequences of {tokens.shape[1]} tokens are longer than {model.name} takes: "
            f"ask for `context` {model.context} or less"
        )
    lowest, highest = int(tokens.min()), int(tokens.max())
    if highest >= model.vocabulary or lowest < 0:
        raise Refusal(
            f"there is no token {lowest if lowest < 0 else highest}: "
            f"{model.name} has tokens 0 to {model.vocabulary - 1}"
        )


def query_positions(corpus: Corpus, rows: slice, tokens: Tensor) -> QueryPositions:
    """Return the query positions that are read, and the readouts that each counts for.

    The query at position t predicts token t + 1. The first and the last query position are left
    out. In the alignment of the paper's authors, the loss is of all positions with a next token,
    and the other readouts are of all positions but the first.
    """
    width = tokens.shape[1]
    lengths = torch.from_numpy(corpus.lengths[rows]).to(tokens.device)[:, None]
    first, last = (0, width) if corpus.authors_alignment else (1, width - 1)
    query = torch.arange(first, last, device=tokens.device)
    # The last position has no next token. It repeats the last one, which no mask lets count.
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
