"""Encoding of text: at once, or in overlapping pieces that give the same tokens.

A long document is encoded in pieces that overlap. Tokens depend on the text around them, not on
text far away, so two pieces agree on the tokens of their overlap except at its ends. They are
joined inside a stretch where both have the same ids at the same places in the text, well away from
either end. Where they do not agree, they overlap more. Where that does not help, the document is
refused, so that tokens are never other than those of the whole document.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from robustness.errors import Refusal

LONGEST_WHOLE = 2**20
"""Maximum number of characters of a document that is encoded at once."""

PIECE_SIZE = 2**18
"""Number of characters in a piece of a longer document."""

OVERLAPS = (2**13, 2**15, 2**17)
"""Number of characters by which pieces overlap; the next is tried where one does not suffice."""

MARGIN = 2**11
"""Number of characters at either end of an overlap whose tokens may depend on text beyond it."""

AGREEING_TOKENS = 64
"""Number of consecutive tokens that must be the same in both pieces."""


class Tokenizer(Protocol):
    """A tokenizer of transformers, as far as it is used here."""

    bos_token_id: Any
    bos_token: Any
    eos_token_id: Any

    def __call__(self, text: Any, **options: Any) -> Any:
        """Encode a text."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """Consecutive tokens of a text.

    Attributes
    ----------
    ids : int64 array of shape (token,)
        Token ids.
    spans : int64 array of shape (token, 2), or None
        First character of the text that each token covers, and the one after its last.
    """

    ids: NDArray[np.int64]
    spans: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, first: int, last: int | None = None) -> "Tokens":
        """Return the tokens from index `first` up to `last`, which is excluded."""
        return Tokens(self.ids[first:last], None if self.spans is None else self.spans[first:last])


def encode(tokenizer: Tokenizer, chunks: Iterable[str], *, spans: bool = False) -> Iterator[Tokens]:
    """Yield the tokens of a document, without BOS, as they are needed.

    Parameters
    ----------
    tokenizer
        A transformers tokenizer. One without offsets encodes the document at once.
    chunks : iterable of str
        Text of the document, in consecutive parts.
    spans : bool
        Whether the tokens have their spans in the text.

    Raises
    ------
    Refusal
        If the pieces of a long document do not agree on its tokens.
    """
    text = _HeldText(chunks)
    # Only tokenizers written in Rust give the spans by which pieces are joined.
    fast = bool(getattr(tokenizer, "is_fast", False))
    if text.reaches(LONGEST_WHOLE + 1) and fast:
        yield from _in_pieces(tokenizer, text)
    else:
        text.reaches(None)
        yield _at_once(tokenizer, text.between(0, text.end), 0, spans=spans)


def first_tokens(tokenizer: Tokenizer, chunks: Iterable[str], count: int) -> list[int]:
    """Return the first tokens of a document, or all where there are fewer."""
    ids: list[int] = []
    for piece in encode(tokenizer, chunks):
        ids += piece.ids.tolist()
        if len(ids) >= count:
            break
    return ids[:count]


def encode_with_bos(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the token ids of a short text after the tokenizer's BOS, if it has one."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return bos_ids(tokenizer) + ids


def bos_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the tokens that each sequence begins with: the tokenizer's BOS, if it has one."""
    return [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]


def bos_rule(tokenizer: Tokenizer) -> str:
    """Return the token that each sequence begins with, in words."""
    if tokenizer.bos_token_id is None:
        return "none: the tokenizer has no BOS"
    return f"{tokenizer.bos_token} first"


def eos_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the tokens between joined documents: EOS, or BOS where the tokenizer has no EOS."""
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.bos_token_id
    return [] if end is None else [int(end)]


def _at_once(tokenizer: Tokenizer, text: str, base: int, *, spans: bool) -> Tokens:
    """Encode a text that begins at a character of the document."""
    options = {"return_offsets_mapping": True} if spans else {}
    # Not verbose: transformers would warn of every text that is longer than the model takes.
    encoding = tokenizer(text, add_special_tokens=False, verbose=False, **options)
    ids = np.array(encoding["input_ids"], dtype=np.int64)
    if not spans:
        return Tokens(ids)
    return Tokens(ids, np.array(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2) + base)


def _in_pieces(tokenizer: Tokenizer, text: "_HeldText") -> Iterator[Tokens]:
    """Encode a document in overlapping pieces, each cut where the next one takes over."""
    begin, end = 0, PIECE_SIZE
    piece = _at_once(tokenizer, text.between(begin, end), begin, spans=True)
    while text.reaches(end + 1):
        text.reaches(end + PIECE_SIZE)
        further = min(end + PIECE_SIZE, text.end)
        for overlap in OVERLAPS:
            start, margin = max(begin, end - overlap), min(MARGIN, overlap // 4)
            other = _at_once(tokenizer, text.between(start, further), start, spans=True)
            joint = _joint(piece, other, start + margin, end - margin)
            if joint is not None:
                break
        else:
            raise Refusal(
                f"a document is longer than {end} characters and cannot be divided before that for "
                "the tokenizer: make several documents of it"
            )
        yield piece.part(0, joint[0])
        piece, begin, end = other.part(joint[1]), start, further
        text.forget(begin)
    yield piece


def _joint(left: Tokens, right: Tokens, first: int, last: int) -> tuple[int, int] | None:
    """Return the indices in two encodings at which they are joined, or None.

    Parameters
    ----------
    left, right : Tokens
        Tokens of texts that overlap, with their spans in the document.
    first, last : int
        Characters of the document between which they are compared.
    """
    one, other = _inside(left, first, last), _inside(right, first, last)
    half = AGREEING_TOKENS // 2
    # Each stretch is centred on its joint, so that both pieces agree before and after it.
    for at in range(len(one) - half, half - 1, -half):
        stretch = one[at - half : at + half, 1:]
        for match in np.flatnonzero((other[:, 1:] == one[at, 1:]).all(axis=1)):
            around = other[max(0, match - half) : match + half, 1:]
            if np.array_equal(around, stretch):
                return int(one[at, 0]), int(other[match, 0])
    return None


def _inside(tokens: Tokens, first: int, last: int) -> NDArray[np.int64]:
    """Return the index, id and span of the tokens that lie between two characters."""
    spans = tokens.spans
    assert spans is not None
    indices = np.flatnonzero((spans[:, 0] >= first) & (spans[:, 1] <= last))
    return np.column_stack([indices, tokens.ids[indices], spans[indices]])


class _HeldText:
    """Part of a document that is held in memory."""

    def __init__(self, chunks: Iterable[str]) -> None:
        self._chunks = _short_chunks(chunks)
        self._text, self._begin = "", 0

    @property
    def end(self) -> int:
        """Index of the character after the last that was read."""
        return self._begin + len(self._text)

    def reaches(self, place: int | None) -> bool:
        """Read up to a character, or all, and return whether the document is that long."""
        # Joined once: adding chunk by chunk would copy the text every time.
        read, end = [self._text], self.end
        while place is None or end < place:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            read.append(chunk)
            end += len(chunk)
        self._text = "".join(read)
        return place is None or end >= place

    def between(self, first: int, last: int) -> str:
        """Return the text from one character of the document up to another, which is excluded."""
        return self._text[first - self._begin : last - self._begin]

    def forget(self, before: int) -> None:
        """Drop the text before a character from memory."""
        self._text, self._begin = self._text[before - self._begin :], before


def _short_chunks(chunks: Iterable[str]) -> Iterator[str]:
    """Yield the same text in chunks of at most the size of a piece."""
    for chunk in chunks:
        for begin in range(0, len(chunk), PIECE_SIZE):
            yield chunk[begin : begin + PIECE_SIZE]
