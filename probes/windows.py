"""Windows of text that end in some tokens, and as many others, divided by document."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probes.settings import FEWEST_WINDOWS, SuffixSettings
from robustness.errors import Refusal
from robustness.text.encoding import encode
from robustness.text.sources import open_source

WINDOW_TOKENS = 24
"""Number of tokens of a window, besides BOS."""

FEWEST_DOCUMENTS = 10
"""Minimum number of documents in each part, since the bootstrap draws documents."""

SHARES = {"train": 0.6, "dev": 0.2, "test": 0.2}
"""Share of the documents in each part."""


@dataclass(frozen=True, eq=False)
class Task:
    """Windows that end in a token with the suffix, and as many others."""

    tokens: NDArray[np.int64]
    """Token ids, (item, token), BOS first if the tokenizer has one; the last is to be predicted."""
    label: NDArray[np.bool_]
    """Whether a window ends in a token with the suffix."""
    document: NDArray[np.int64]
    """Index of the document that a window is from."""
    part: NDArray[np.str_]
    """`train`, `dev` or `test`; the same for all windows of a document."""
    positives: int
    """Number of windows with the suffix that were collected."""


@dataclass(eq=False)
class _Windows:
    """Windows collected so far; each positive one has its counterpart at the same position."""

    positive: list[tuple[int, NDArray[np.int32]]] = field(default_factory=list)
    """Documents and tokens of windows that end in a wanted token."""
    negative: list[tuple[int, NDArray[np.int32]]] = field(default_factory=list)
    """Documents and tokens of other windows."""
    documents: int = 0
    """Number of documents with windows."""

    def add(
        self,
        document: int,
        ids: NDArray[np.int32],
        wanted: NDArray[np.int64],
        random: np.random.Generator,
    ) -> None:
        """Add the windows of a document that end in a wanted token, and as many others."""
        hits = np.isin(ids, wanted)
        places = np.arange(WINDOW_TOKENS - 1, len(ids))
        ends = places[hits[places]]
        others = random.permutation(places[~hits[places]])[: len(ends)]
        # If a document has too few others, positives are left out: each has a counterpart from the
        # same document, so that documents tell nothing about labels.
        for windows, chosen in ((self.positive, ends[: len(others)]), (self.negative, others)):
            for end in chosen:
                # A copy, since a view would keep the whole document in memory.
                windows.append((document, ids[end - WINDOW_TOKENS + 1 : end + 1].copy()))
        self.documents += bool(len(ends) and len(others))

    def suffice(self, items: int) -> bool:
        """Whether there are enough windows, from enough documents to divide."""
        return len(self.positive) * 2 >= items and self.documents >= 10 * FEWEST_DOCUMENTS


def tokens_ending_in(tokenizer: Any, suffix: str) -> NDArray[np.int64]:
    """Return the ids of tokens that end in a suffix, stripped and in lower case.

    Raises
    ------
    Refusal
        If there is none.
    """
    if tokenizer is None:
        raise Refusal("there is no tokenizer to find the tokens with a suffix by")
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    matching = []
    for token, text in enumerate(texts):
        if text.strip().lower().endswith(suffix.lower()):
            matching.append(token)
    if not suffix or not matching:
        raise Refusal(f"no token of {len(texts)} ends in {suffix!r}")
    return np.array(matching)


def make_task(tokenizer: Any, wanted: NDArray[np.int64], settings: SuffixSettings) -> Task:
    """Cut balanced windows from a corpus, divided into parts by document.

    Parameters
    ----------
    tokenizer
        A transformers tokenizer.
    wanted : array of int
        Ids of the tokens that a positive window ends in.
    settings : SuffixSettings
        Which corpus is read, and how many windows are taken.

    Raises
    ------
    Refusal
        If there are too few positive windows, or none in one of the parts.
    """
    random = np.random.default_rng(settings.seed)
    windows = _collect(tokenizer, wanted, settings, random)
    count = min(settings.items // 2, len(windows.positive))
    if count < FEWEST_WINDOWS:
        raise Refusal(
            f"{settings.source} has {count} windows of {WINDOW_TOKENS} tokens that end in a wanted "
            f"token; {FEWEST_WINDOWS} are needed: read more text"
        )
    # The same positions in both lists, so that each positive keeps its counterpart.
    places = np.sort(random.permutation(len(windows.positive))[:count]).tolist()
    rows = [windows.positive[at] for at in places] + [windows.negative[at] for at in places]
    indices, ids = zip(*rows, strict=True)
    document = np.array(indices)
    part = _divide(document, random)
    _check_parts(settings, document, part)
    bos = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    return Task(
        tokens=np.array([[*bos, *of_window] for of_window in ids], dtype=np.int64),
        label=np.repeat([True, False], count),
        document=document,
        part=part,
        positives=len(windows.positive),
    )


def _collect(
    tokenizer: Any,
    wanted: NDArray[np.int64],
    settings: SuffixSettings,
    random: np.random.Generator,
) -> _Windows:
    """Read documents until there are enough windows."""
    windows = _Windows()
    with open_source(settings.source, field=settings.field, split=settings.split) as text:
        for index, chunks in text.documents(settings.seed):
            # The draw depends on the whole document, which may be long: only its ids are kept.
            pieces = [piece.ids.astype(np.int32) for piece in encode(tokenizer, chunks)]
            windows.add(index, np.concatenate(pieces), wanted, random)
            if windows.suffice(settings.items):
                break
    return windows


def _check_parts(
    settings: SuffixSettings, document: NDArray[np.int64], part: NDArray[np.str_]
) -> None:
    """Refuse a division in which a part has too few documents."""
    for name in SHARES:
        count = len(np.unique(document[part == name]))
        if count < FEWEST_DOCUMENTS:
            raise Refusal(
                f"{settings.source} gives {count} document(s) for {name}, and {FEWEST_DOCUMENTS} "
                "are needed: read a corpus of more documents"
            )


def _divide(document: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.str_]:
    """Return the part of every item; documents stay whole, and parts have about their shares."""
    order = random.permutation(np.unique(document))
    _, sizes = np.unique(document, return_counts=True)
    counts = sizes[np.searchsorted(np.unique(document), order)]
    # A document belongs to the part that its middle item falls into.
    middle = (np.cumsum(counts) - counts / 2) / counts.sum()
    bounds = np.cumsum(list(SHARES.values()))[:-1]
    names = np.array(list(SHARES))[np.searchsorted(bounds, middle)]
    part_of = dict(zip(order.tolist(), names.tolist(), strict=True))
    return np.array([part_of[index] for index in document.tolist()])
