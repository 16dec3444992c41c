"""Parts of a text: one that candidates are chosen on, and one that the chosen are judged on."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
from numpy.typing import NDArray

from robustness.errors import Refusal
from robustness.files.kinds.searches import HELD_OUT, SEARCHED
from robustness.text.corpus import Corpus

FEWEST = 2
"""Minimum number of documents in either part: with fewer there is no standard error."""


@dataclass(frozen=True, eq=False)
class Parts:
    """The sequences of one text or several, those that are searched first."""

    corpus: Corpus
    """All sequences. Documents of different texts have different indices."""
    source: NDArray[np.str_]
    """Name of the text of every sequence."""
    searched: int
    """Number of sequences that candidates are chosen on."""

    @property
    def part(self) -> NDArray[np.str_]:
        """Name of the part of every sequence."""
        held_out = len(self.source) - self.searched
        return np.array([SEARCHED] * self.searched + [HELD_OUT] * held_out)

    @property
    def held_out(self) -> slice:
        """Sequences that nothing is chosen on."""
        return slice(self.searched, len(self.source))

    @property
    def texts(self) -> list[str]:
        """Names of the texts, in the order in which they were given."""
        return list(dict.fromkeys(self.source.tolist()))

    def batches(self, batch_tokens: int) -> tuple[list[slice], list[slice]]:
        """Return the batches of the searched and of the held-out part."""
        first, second = slice(0, self.searched), slice(self.searched, len(self.source))
        found = []
        for rows in (first, second):
            batches = self.corpus.part(rows).batches(batch_tokens)
            found.append([slice(rows.start + b.start, rows.start + b.stop) for b in batches])
        return found[0], found[1]


def divide(corpora: Sequence[Corpus], holdout: float) -> Parts:
    """Divide texts into a part to search and one that is held out, by whole documents.

    Sequences of several texts alternate, so that every batch has some of each.

    Parameters
    ----------
    corpora : sequence of Corpus
        Texts.
    holdout : float
        Share of the sequences of each text that is held out, from its end; as many documents as it
        takes.

    Raises
    ------
    Refusal
        If a text has too few documents, or one is given twice.
    """
    hashes = [corpus.sha256() for corpus in corpora]
    names = [corpus.name for corpus in corpora]
    for number, name in enumerate(names):
        if hashes.index(hashes[number]) < number:
            raise Refusal(f"the text {name} was given twice: leave one out")
        if names.index(name) < number:
            names[number] = f"{name} ({number + 1})"
    # Of each sequence: whether it is held out, how far on in its text it is, its text, its row.
    order: list[tuple[bool, float, int, int]] = []
    for number, corpus in enumerate(corpora):
        searched = _searched(corpus, holdout)
        for row in range(len(corpus.tokens)):
            held_out = row >= searched
            begin, end = (searched, len(corpus.tokens)) if held_out else (0, searched)
            order.append((held_out, (row - begin) / (end - begin), number, row))
    order.sort()
    joined = _join(corpora, names, [(number, row) for *_, number, row in order])
    source = np.array([names[number] for *_, number, _ in order])
    return Parts(joined, source, sum(not held_out for held_out, *_ in order))


def _searched(corpus: Corpus, holdout: float) -> int:
    """Return how many sequences come before the documents that are held out."""
    documents = corpus.document
    # Where documents follow each other, a document begins where another sequence's ended.
    starts = [0, *(np.flatnonzero(np.diff(documents)) + 1).tolist()]
    count, sequences = len(starts), len(documents)
    # 1 - 0.9 is a little less than 0.1.
    share = round(min(holdout, 1 - holdout), 9)
    needed = FEWEST if not holdout else ceil(FEWEST / share)
    if count < needed:
        part = "its held-out part" if holdout else "a search"
        raise Refusal(
            f"{corpus.name} has too few documents, {count}: {part} takes {needed} or more. Read "
            "more `tokens`, a shorter `context`, or another `holdout`"
        )
    if not holdout:
        return sequences
    wanted = (1 - holdout) * sequences
    # The boundary nearest to the share that leaves enough documents on either side.
    inner = starts[FEWEST : count - FEWEST + 1]
    return min(inner, key=lambda start: abs(start - wanted))


def _join(
    corpora: Sequence[Corpus], names: Sequence[str], order: Sequence[tuple[int, int]]
) -> Corpus:
    """Return some sequences of several texts in an order, as one corpus."""
    if len(corpora) == 1:
        return corpora[0]
    width = max(corpus.context for corpus in corpora)
    shift, first = [], 0
    for corpus in corpora:
        shift.append(first)
        first += int(corpus.document.max()) + 1
    rows, lengths, documents = [], [], []
    for number, row in order:
        corpus = corpora[number]
        rows.append(np.pad(corpus.tokens[row], (0, width - corpus.context), mode="edge"))
        lengths.append(corpus.lengths[row])
        documents.append(shift[number] + corpus.document[row])
    digests = " ".join(corpus.source_sha256 for corpus in corpora)
    return replace(
        corpora[0],
        tokens=np.array(rows),
        lengths=np.array(lengths),
        document=np.array(documents),
        name=", ".join(names),
        source_sha256=hashlib.sha256(digests.encode()).hexdigest(),
    )
