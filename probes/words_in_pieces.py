"""Inputs that end in a word of several tokens, or in a word of one token."""

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probes.settings import SubjoinerSettings
from robustness.errors import Refusal
from robustness.text.encoding import Tokens, encode
from robustness.text.sources import documents

INPUT_TOKENS = 16
"""Number of tokens of an input, besides BOS."""

FEWEST_INPUTS = 40
"""Minimum number of inputs of each class."""

FEWEST_WORDS = 10
"""Minimum number of distinct words of each class in each half."""

WHOLE_WORDS_OF_A_DOCUMENT = 3
"""Maximum number of whole words from a document."""

WORD = re.compile(r"[a-z]+")
"""Pattern of the words that are used: lower-case letters only."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """Inputs of both classes."""

    tokens: NDArray[np.int64]
    """Token ids, (item, token), BOS first if the tokenizer has one."""
    pieces: NDArray[np.bool_]
    """Whether the last tokens are pieces of one word."""
    word: NDArray[np.str_]
    """Word that the input ends in."""
    held_out: NDArray[np.bool_]
    """Whether heads are scored on the input, and not selected on it; the same for all inputs of a
    word."""


Row = tuple[str, list[int]]
"""A word, and the last tokens up to its end."""


def make_inputs(tokenizer: Any, settings: SubjoinerSettings) -> Inputs:
    """Cut inputs from a corpus: running text that ends in a word in pieces, or in a whole word.

    Parameters
    ----------
    tokenizer
        A transformers tokenizer.
    settings : SubjoinerSettings
        Which corpus is read, how many pieces a word has, and how many inputs are taken.

    Raises
    ------
    Refusal
        If there are too few inputs of either class.
    """
    if tokenizer is None or not tokenizer.is_fast:
        raise Refusal("there is no tokenizer with offsets, to find a word's tokens by")
    in_pieces, whole = _collect(tokenizer, settings)
    _check_inputs(settings, in_pieces, whole)
    ends, ids = zip(*in_pieces, *whole, strict=True)
    words = np.array(ends)
    kinds = np.repeat([True, False], [len(in_pieces), len(whole)])
    bos = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    return Inputs(
        tokens=np.array([bos + of_input for of_input in ids], dtype=np.int64),
        pieces=kinds,
        word=words,
        held_out=_hold_out(settings, words, kinds),
    )


def _collect(tokenizer: Any, settings: SubjoinerSettings) -> tuple[list[Row], list[Row]]:
    """Read documents until there are enough inputs of both classes.

    Returns
    -------
    in_pieces, whole : list of tuple
        Words, and the last tokens up to their ends.
    """
    in_pieces: list[Row] = []
    whole: list[Row] = []
    source = documents(
        settings.source, seed=settings.seed, field=settings.field, split=settings.split
    )
    for _, text in source:
        _collect_from(text, tokenizer, settings, in_pieces, whole)
        if min(len(in_pieces), len(whole)) >= settings.items:
            break
    return in_pieces, whole


def _collect_from(
    text: str,
    tokenizer: Any,
    settings: SubjoinerSettings,
    in_pieces: list[Row],
    whole: list[Row],
) -> None:
    """Add the inputs of a document."""
    seen = 0
    for word, ids, count in _words(text, tokenizer):
        # Whole words are frequent: a few from each document, so that the inputs come from many.
        enough = seen >= WHOLE_WORDS_OF_A_DOCUMENT
        if len(ids) < INPUT_TOKENS or count not in (1, settings.pieces) or (count == 1 and enough):
            continue
        seen += count == 1
        rows = in_pieces if count == settings.pieces else whole
        if len(rows) < settings.items:
            rows.append((word, ids))
        enough = seen >= WHOLE_WORDS_OF_A_DOCUMENT or len(whole) >= settings.items
        if len(in_pieces) >= settings.items and enough:
            break


def _words(text: str, tokenizer: Any) -> Iterator[tuple[str, list[int], int]]:
    """Yield each word that is used, the last tokens up to its end, and its number of tokens."""
    # Words and tokens are walked through side by side, so that long documents take one pass.
    tokens = _tokens(text, tokenizer)
    token = next(tokens, None)
    before: deque[int] = deque(maxlen=INPUT_TOKENS)
    for match in re.finditer(r"\S+", text):
        first, last = match.span()
        while token is not None and token[2] <= first:
            before.append(token[0])
            token = next(tokens, None)
        count = 0
        while token is not None and token[1] < last:
            before.append(token[0])
            token = next(tokens, None)
            count += 1
        if WORD.fullmatch(match.group()):
            yield match.group(), list(before), count


def _tokens(text: str, tokenizer: Any) -> Iterator[tuple[int, int, int]]:
    """Yield the tokens of a text with the positions of the characters that they cover."""
    for piece in encode(tokenizer, [text], spans=True):
        for token, (first, last) in zip(piece.ids.tolist(), _spans(piece), strict=True):
            yield token, first, last


def _spans(tokens: Tokens) -> list[list[int]]:
    assert tokens.spans is not None
    spans: list[list[int]] = tokens.spans.tolist()
    return spans


def _check_inputs(settings: SubjoinerSettings, in_pieces: list[Row], whole: list[Row]) -> None:
    """Refuse too few inputs of either class."""
    for rows, what in ((in_pieces, f"{settings.pieces} tokens"), (whole, "one token")):
        if len(rows) < FEWEST_INPUTS:
            raise Refusal(
                f"{settings.source} has {len(rows)} words of {what} after enough text; "
                f"{FEWEST_INPUTS} are needed: read more text, or ask for words of other `pieces`"
            )


def _hold_out(
    settings: SubjoinerSettings, words: NDArray[np.str_], kinds: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return which inputs are held out: those with half of the words of each class."""
    random = np.random.default_rng(settings.seed)
    held_out = np.zeros(len(words), np.bool_)
    for kind in (True, False):
        distinct = np.unique(words[kinds == kind])
        if len(distinct) < 2 * FEWEST_WORDS:
            raise Refusal(
                f"{settings.source} has {len(distinct)} different words of "
                f"{settings.pieces if kind else 1} token(s); {2 * FEWEST_WORDS} are needed: read "
                "more text, or ask for words of other `pieces`"
            )
        held_out |= np.isin(words, random.permutation(distinct)[::2])
    return held_out
