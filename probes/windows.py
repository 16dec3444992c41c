"""Windows of text that end in some tokens, and as many that do not, divided by document."""

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
"""Minimum number of documents in each part, because intervals are by document."""

SHARES = {"train": 0.6, "dev": 0.2, "test": 0.2}
"""Share of the documents in each part."""


@dataclass(frozen=True, eq=False)
class Task:
    """Windows that end in a token with the suffix, and as many that do not."""

    tokens: NDArray[np.int64]
    """Token ids, (item, token), BOS first where there is one; the last is to be predicted."""
    label: NDArray[np.bool_]
    """Whether a window ends in a token with the suffix."""
    document: NDArray[np.int64]
    """Index of the document that a window is from."""
    part: NDArray[np.str_]
    """`train`, `dev` or `test`; the same for all windows of a document."""
    positives: int
    """Number of windows with the suffix that were found before there were enough."""


@dataclass(eq=False)
class _Windows:
    """Windows collected so far; positive and negative ones stand at the same places."""

    positive: list[tuple[int, NDArray[np.int32]]] = field(default_factory=list)
    negative: list[tuple[int, NDArray[np.int32]]] = field(default_factory=list)
    documents: int = 0
    """Number of documents with windows."""

    def add(
        self,
        document: int,
        ids: NDArray[np.int32],
        wanted: NDArray[np.int64],
        random: np.random.Generator,
    ) -> None:
        """Take the windows of a document that end in a wanted token, and as many others."""
        hits = np.isin(ids, wanted)
        places = np.arange(WINDOW_TOKENS - 1, len(ids))
        ends = places[hits[places]]
        others = random.permutation(places[~hits[places]])[: len(ends)]
        # Where a document has too few others, positives are left out: each has its counterpart.
        for kept, chosen in ((self.positive, ends[: len(others)]), (self.negative, others)):
            for end in chosen:
                kept.append((document, ids[end - WINDOW_TOKENS + 1 : end + 1].copy()))
        self.documents += bool(len(ends) and len(others))

    def suffice(self, items: int) -> bool:
        """Whether there are so many windows, from documents enough to be divided."""
        return len(self.positive) * 2 >= items and self.documents >= 10 * FEWEST_DOCUMENTS


def tokens_ending_in(tokenizer: Any, suffix: str) -> NDArray[np.int64]:
    """Return the tokens that, stripped and in lower case, end in a suffix.

    Raises
    ------
    Refusal
        If there is none.
    """
    if tokenizer is None:
        raise Refusal("there is no tokenizer to find the tokens with a suffix by")
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    found = [at for at, text in enumerate(texts) if text.strip().lower().endswith(suffix.lower())]
    if not suffix or not found:
        raise Refusal(f"no token of {len(texts)} ends in {suffix!r}")
    return np.array(found)


def make_task(tokenizer: Any, wanted: NDArray[np.int64], settings: SuffixSettings) -> Task:
    """Cut balanced windows from a corpus, divided into parts by document.

    Parameters
    ----------
    tokenizer
        A transformers tokenizer.
    wanted : array of int
        Tokens that a positive window ends in.
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
    # The same places of both lists, so that a positive and its counterpart stay together.
    places = np.sort(random.permutation(len(windows.positive))[:count]).tolist()
    rows = [windows.positive[at] for at in places] + [windows.negative[at] for at in places]
    document = np.array([index for index, _ in rows])
    part = _divide(document, random)
    _check_parts(settings, document, part)
    bos = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    return Task(
        tokens=np.array([[*bos, *ids] for _, ids in rows], dtype=np.int64),
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
    """Read documents until there are windows enough."""
    windows = _Windows()
    with open_source(settings.source, field=settings.field, split=settings.split) as text:
        for index, chunks in text.documents(settings.seed):
            # Ids alone are kept, for a document may be long, and the draw depends on all of it.
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
        there = len(np.unique(document[part == name]))
        if there < FEWEST_DOCUMENTS:
            raise Refusal(
                f"{settings.source} gives {there} document(s) for {name}, and {FEWEST_DOCUMENTS} "
                "are needed: read a corpus of more documents"
            )


def _divide(document: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.str_]:
    """Give every document to a part, so that the parts have about their share of the items."""
    order = random.permutation(np.unique(document))
    counts = np.array([(document == each).sum() for each in order])
    middle = (np.cumsum(counts) - counts / 2) / counts.sum()
    bounds = np.cumsum(list(SHARES.values()))[:-1]
    names = np.array(list(SHARES))[np.searchsorted(bounds, middle)]
    place = dict(zip(order.tolist(), names.tolist(), strict=True))
    return np.array([place[each] for each in document.tolist()])
