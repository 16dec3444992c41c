"""Text to tokens: at once, or a long document in pieces that give the tokens of the whole.

A long document is encoded in pieces that overlap. What a tokenizer makes of a place depends on the
text around it, not on text far away, so two pieces agree on the tokens of their overlap, but for
its ends. They are joined inside a stretch where ids and places in the text are the same in both,
well away from either end. Where they do not agree, they are made to overlap more; where that does
not help, the document is refused, and never are tokens other than those of the whole.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from robustness.errors import Refusal

LONGEST_WHOLE = 2**20
"""Number of characters up to which a document is encoded at once."""

PIECE_SIZE = 2**18
"""Number of characters in a piece of a longer document."""

OVERLAPS = (2**13, 2**15, 2**17)
"""Number of characters by which pieces overlap; the next is tried where one does not suffice."""

MARGIN = 2**11
"""Number of characters at either end of an overlap whose tokens may depend on text beyond it."""

AGREEING_TOKENS = 64
"""Number of consecutive tokens that must be the same in both pieces."""


class Tokenizer(Protocol):
    """What is used of a tokenizer of transformers."""

    bos_token_id: Any
    bos_token: Any
    eos_token_id: Any

    def __call__(self, text: Any, **options: Any) -> Any:
        """Encode a text."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """Some tokens of a text, in their order.

    Attributes
    ----------
    ids : int64 array of shape (token,)
        Token ids.
    spans : int64 array of shape (token, 2), or None
        The first character of the text that a token stands for, and the one after the last.
    """

    ids: NDArray[np.int64]
    spans: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, first: int, last: int | None = None) -> "Tokens":
        """Return the tokens from one index to before another."""
        return Tokens(self.ids[first:last], None if self.spans is None else self.spans[first:last])


def encode(tokenizer: Tokenizer, chunks: Iterable[str], *, spans: bool = False) -> Iterator[Tokens]:
    """Yield the tokens of a document, without BOS, as they are needed.

    Parameters
    ----------
    tokenizer
        A transformers tokenizer. One without offsets encodes the document at once.
    chunks : iterable of str
        The document, in parts.
    spans : bool
        Whether places in the text are wanted too.

    Raises
    ------
    Refusal
        If a long document's tokens cannot be told from pieces of it.
    """
    text = _HeldText(chunks)
    fast = bool(getattr(tokenizer, "is_fast", False))
    if text.reaches(LONGEST_WHOLE + 1) and fast:
        yield from _in_pieces(tokenizer, text)
    else:
        text.reaches(None)
        yield _at_once(tokenizer, text.between(0, text.end), 0, spans=spans)


def first_tokens(tokenizer: Tokenizer, chunks: Iterable[str], count: int) -> list[int]:
    """Return the first tokens of a document, or all where there are fewer."""
    found: list[int] = []
    for piece in encode(tokenizer, chunks):
        found += piece.ids.tolist()
        if len(found) >= count:
            break
    return found[:count]


def encode_with_bos(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the token ids of a short text, the tokenizer's BOS first where it has one."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return bos_ids(tokenizer) + ids


def bos_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the tokens that stand first in a sequence: the tokenizer's BOS, where it has one."""
    return [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]


def bos_rule(tokenizer: Tokenizer) -> str:
    """Return what stands first in a sequence, in words."""
    if tokenizer.bos_token_id is None:
        return "none: the tokenizer has no BOS"
    return f"{tokenizer.bos_token} first"


def eos_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the tokens between joined documents: EOS, or BOS where the tokenizer has no EOS."""
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.bos_token_id
    return [] if end is None else [int(end)]


def _at_once(tokenizer: Tokenizer, text: str, base: int, *, spans: bool) -> Tokens:
    """Encode a text that begins at a character of the document."""
    wanted = {"return_offsets_mapping": True} if spans else {}
    found = tokenizer(text, add_special_tokens=False, verbose=False, **wanted)
    ids = np.array(found["input_ids"], dtype=np.int64)
    if not spans:
        return Tokens(ids)
    return Tokens(ids, np.array(found["offset_mapping"], dtype=np.int64).reshape(-1, 2) + base)


def _in_pieces(tokenizer: Tokenizer, text: "_HeldText") -> Iterator[Tokens]:
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
        Of texts that overlap, with places in the document.
    first, last : int
        The characters between which they are compared.
    """
    one, other = _inside(left, first, last), _inside(right, first, last)
    half = AGREEING_TOKENS // 2
    for at in range(len(one) - half, half - 1, -half):
        stretch = one[at - half : at + half, 1:]
        for there in np.flatnonzero((other[:, 1:] == one[at, 1:]).all(axis=1)):
            same = other[max(0, there - half) : there + half, 1:]
            if np.array_equal(same, stretch):
                return int(one[at, 0]), int(other[there, 0])
    return None


def _inside(tokens: Tokens, first: int, last: int) -> NDArray[np.int64]:
    """Return the index, id and place of the tokens that lie between two characters."""
    spans = tokens.spans
    assert spans is not None
    kept = np.flatnonzero((spans[:, 0] >= first) & (spans[:, 1] <= last))
    return np.column_stack([kept, tokens.ids[kept], spans[kept]])


class _HeldText:
    """The part of a document that is held."""

    def __init__(self, chunks: Iterable[str]) -> None:
        self._chunks = _short_chunks(chunks)
        self._text, self._begin = "", 0

    @property
    def end(self) -> int:
        """The character after the last that was read."""
        return self._begin + len(self._text)

    def reaches(self, place: int | None) -> bool:
        """Read up to a place, or all; whether the document goes so far."""
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
        """Return the text from one character of the document to before another."""
        return self._text[first - self._begin : last - self._begin]

    def forget(self, before: int) -> None:
        """Let go of the text before a character."""
        self._text, self._begin = self._text[before - self._begin :], before


def _short_chunks(chunks: Iterable[str]) -> Iterator[str]:
    """Yield the same text in chunks of at most the size of a piece."""
    for chunk in chunks:
        for begin in range(0, len(chunk), PIECE_SIZE):
            yield chunk[begin : begin + PIECE_SIZE]
