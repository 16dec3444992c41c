"""Corpora: token sequences cut from documents in a seeded order, with their provenance."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from robustness.errors import Refusal
from robustness.text.encoding import Tokenizer, bos_ids, bos_rule, encode, eos_ids, first_tokens
from robustness.text.settings import (
    DEFAULT_CONTEXT,
    PAPER_CONTEXT,
    PAPER_DOCUMENTS,
    SHORTEST_SEQUENCE,
    TextSettings,
)
from robustness.text.sources import Source, open_source
from robustness.text.windows import WindowCutter

DEFAULT_TOKENS = 100_000
"""Maximum number of tokens to read where no number is asked for."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """Token sequences cut from documents.

    Attributes
    ----------
    tokens : int64 array of shape (sequence, token)
        Token ids; a row shorter than the widest is filled up on the right with its last token.
    lengths : int64 array of shape (sequence,)
        Number of tokens of each row that are not filling.
    document : int64 array of shape (sequence,)
        Index of the document that each sequence was cut from, or of the sequence itself if packed.
    name : str
        Base name of the file, id of the data set, or name of the built-in text.
    rule : str
        Rule by which sequences were cut, in words.
    bos : str
        Token that each sequence begins with, in words.
    seed : int
        Seed of the document order.
    authors_alignment : bool
        Whether readouts are taken at the positions that the paper's authors used.
    source_sha256 : str
        Digest of the file or of the data set's name, and of the column and split that were read.
        It is equal where equal indices are equal documents.
    """

    tokens: NDArray[np.int64]
    lengths: NDArray[np.int64]
    document: NDArray[np.int64]
    name: str
    rule: str
    bos: str
    seed: int
    authors_alignment: bool = False
    source_sha256: str = ""

    @property
    def context(self) -> int:
        """Number of tokens in the longest sequence."""
        return int(self.tokens.shape[1])

    def sha256(self) -> str:
        """Hash of the token ids, their order and their division into sequences."""
        digest = hashlib.sha256(repr(self.lengths.tolist()).encode())
        # In one byte order on every machine, and without the filling.
        for row, length in zip(self.tokens, self.lengths, strict=True):
            digest.update(np.ascontiguousarray(row[:length], dtype="<i8").tobytes())
        return digest.hexdigest()

    def batches(self, batch_tokens: int) -> list[slice]:
        """Return slices of sequences with `batch_tokens` tokens at most, or with one sequence."""
        size, count = max(1, batch_tokens // self.context), len(self.tokens)
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]

    def settings(self) -> dict[str, Any]:
        """Return the attributes of a file that describe the corpus."""
        return {
            "corpus": self.name,
            "corpus_sha256": self.sha256(),
            "source_sha256": self.source_sha256 or None,
            "context": self.context,
            "sequences": len(self.tokens),
            "tokens": int(self.lengths.sum()),
            "windows": self.rule,
            "bos": self.bos,
            "seed": self.seed,
            "alignment": "as the paper's authors" if self.authors_alignment else "same prediction",
        }

    def counted(self, before: int = 0) -> NDArray[np.int64] | None:
        """Return the number of tokens in each sequence's means, or None where all have as many.

        With the authors' alignment, means are over all positions but one and `before` more.
        """
        return self.lengths - 1 - before if self.authors_alignment else None

    def take(self, sequences: int) -> "Corpus":
        """Return the corpus of the first `sequences` sequences."""
        return self.part(slice(0, sequences))

    def part(self, rows: slice) -> "Corpus":
        """Return the corpus of some of the sequences, in rows of the same width."""
        return replace(
            self,
            tokens=self.tokens[rows],
            lengths=self.lengths[rows],
            document=self.document[rows],
        )


class TokenizedModel(Protocol):
    """A model as `read_text` needs it."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of transformers."""

    @property
    def context(self) -> int | None:
        """Largest number of tokens in a sequence, or None where the model has no limit."""

    @property
    def name(self) -> str:
        """Name of the model, for messages."""


def read_text(settings: TextSettings, model: TokenizedModel) -> Corpus:
    """Read a text as settings say, cut into sequences that a model takes.

    Raises
    ------
    Refusal
        If the source cannot be read or is too short, or the context exceeds the model's limit.
    """
    default = PAPER_CONTEXT if settings.paper_compat else DEFAULT_CONTEXT
    context = settings.context or min(default, model.context or default)
    if model.context is not None and context > model.context:
        raise Refusal(
            f"a context of {context} is longer than {model.name} takes: {model.context} tokens"
        )
    read = _first_documents if settings.paper_compat else _cut
    return read(settings, model.tokenizer, context)


def cut(  # noqa: PLR0913 - its keywords are the settings
    source: str | Path,
    tokenizer: Tokenizer,
    *,
    context: int,
    tokens: int | None = None,
    seed: int = 0,
    pack: bool = False,
    field: str = "text",
    split: str = "train",
) -> Corpus:
    """Cut a source into windows of exactly `context` tokens, in a seeded order of documents.

    Every window begins with the tokenizer's BOS, if it has one. No window contains tokens of two
    documents, and the tokens after a document's last window are dropped. With `pack`, documents are
    joined by the tokenizer's EOS and windows may contain several.

    Parameters
    ----------
    source, field, split
        As for `documents`.
    tokenizer
        A transformers tokenizer.
    context : int
        Number of tokens in a window, BOS included.
    tokens : int, optional
        Number of tokens to read, rounded down to whole windows; the source must hold them all.
        Without it, at most `DEFAULT_TOKENS` of what the source holds.
    seed : int
        Seed of the document order.
    pack : bool
        Whether documents are joined.

    Returns
    -------
    Corpus
        The windows, as rows of length `context`.

    Raises
    ------
    Refusal
        If the source cannot be read, or holds too few tokens.
    """
    settings = TextSettings(
        source=source,
        field=field,
        split=split,
        tokens=tokens,
        context=context,
        pack=pack,
        seed=seed,
    )
    return _cut(settings, tokenizer, context)


def _cut(settings: TextSettings, tokenizer: Tokenizer, context: int) -> Corpus:
    tokens = settings.tokens
    if tokens is not None and tokens < context:
        raise Refusal(f"{tokens} tokens were asked for, fewer than one sequence of {context}")
    wanted = max(1, (DEFAULT_TOKENS if tokens is None else tokens) // context)
    joint = eos_ids(tokenizer) if settings.pack else None
    cutter = WindowCutter(bos_ids(tokenizer), context, wanted, joint)
    with open_source(settings.source, field=settings.field, split=settings.split) as text:
        _cut_documents(cutter, text, tokenizer, settings.seed)
    # The end of a packed document can complete a window more than wanted.
    count = min(wanted, len(cutter.windows))
    if not count or (tokens is not None and count < wanted):
        asked = tokens or context
        raise Refusal(
            f"{asked} tokens were asked for, {text.name} has {count * context} in sequences of "
            f"{context}; {cutter.remedy(asked, context)}"
        )
    documents = np.array(cutter.documents[:count], dtype=np.int64)
    return Corpus(
        tokens=np.array(cutter.windows[:count], dtype=np.int64),
        lengths=np.full(count, context, dtype=np.int64),
        # A packed window is of several documents, and stands for itself.
        document=np.arange(count) if settings.pack else documents,
        name=text.name,
        rule="packed windows" if settings.pack else "windows within documents",
        bos=bos_rule(tokenizer),
        seed=settings.seed,
        source_sha256=text.sha256,
    )


def _cut_documents(cutter: WindowCutter, text: Source, tokenizer: Tokenizer, seed: int) -> None:
    """Cut documents in the order of a seed until there are enough windows."""
    for index, chunks in text.documents(seed):
        cutter.begin(index)
        # Piece by piece, so that no more of a long document is encoded than is needed.
        for piece in encode(tokenizer, chunks):
            cutter.add(piece.ids)
            if cutter.full:
                break
        cutter.end()
        if cutter.full:
            return


def first_documents(
    source: str | Path,
    tokenizer: Tokenizer,
    *,
    context: int,
    count: int = PAPER_DOCUMENTS,
    field: str = "text",
    split: str = "train",
) -> Corpus:
    """Take the first documents of a source, one a sequence, cut off at `context`, as in the paper.

    The defaults and the alignment of tokens are those of the authors' released code. There, KL,
    agreement and entropy cover all query positions but the first, and loss all but the last.

    Parameters
    ----------
    source, tokenizer, field, split
        As for `cut`.
    context : int
        Maximum number of tokens in a sequence, BOS included.
    count : int
        Number of documents to take. Those of fewer than three tokens are skipped.

    Raises
    ------
    Refusal
        If the source cannot be read, or holds fewer documents.
    """
    settings = TextSettings(
        source=source,
        field=field,
        split=split,
        context=context,
        paper_compat=True,
        documents=count,
    )
    return _first_documents(settings, tokenizer, context)


def _first_documents(settings: TextSettings, tokenizer: Tokenizer, context: int) -> Corpus:
    count = settings.documents or PAPER_DOCUMENTS
    bos = bos_ids(tokenizer)
    indices: list[int] = []
    rows: list[list[int]] = []
    with open_source(settings.source, field=settings.field, split=settings.split) as text:
        for index, chunks in text.documents():
            ids = bos + first_tokens(tokenizer, chunks, context - len(bos))
            if len(ids) >= SHORTEST_SEQUENCE:
                indices.append(index)
                rows.append(ids)
            if len(rows) >= count:
                break
    if len(rows) < count:
        remedy = f"ask for `documents` {len(rows)}" if rows else "read a longer text"
        raise Refusal(
            f"{count} documents were asked for, {text.name} has {len(rows)} of at least "
            f"{SHORTEST_SEQUENCE} tokens; {remedy}"
        )
    lengths = np.array([len(ids) for ids in rows], dtype=np.int64)
    tokens = np.empty((count, lengths.max()), dtype=np.int64)
    # Filled up on the right, which changes nothing to the left in a causal model.
    for row, ids in enumerate(rows):
        tokens[row] = ids[-1]
        tokens[row, : len(ids)] = ids
    return Corpus(
        tokens=tokens,
        lengths=lengths,
        document=np.array(indices, dtype=np.int64),
        name=text.name,
        rule="first documents, one a sequence",
        bos=bos_rule(tokenizer),
        seed=0,
        authors_alignment=True,
        source_sha256=text.sha256,
    )
