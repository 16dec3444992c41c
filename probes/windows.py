"""Windows of text that end in some tokens, as many that do not, divided into parts by document."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustness.errors import Refusal
from robustness.text.corpus import opened
from robustness.text.encoding import encode

LENGTH = 24
"""Tokens of a window, besides BOS."""

ITEMS = 10_000
"""The most windows, half of them with the suffix."""

FEWEST = 200
"""Windows with the suffix that there must be."""

FEWEST_DOCUMENTS = 10
"""Documents of each part that there must be: intervals are by document."""

SHARES = {"train": 0.6, "dev": 0.2, "test": 0.2}
"""Of the documents."""


@dataclass(frozen=True, eq=False)
class Task:
    """Windows that end in a token with the suffix, and as many that do not."""

    tokens: NDArray[np.int64]
    """(item, token), BOS first where there is one; the last token is the one to be predicted."""
    label: NDArray[np.bool_]
    document: NDArray[np.int64]
    part: NDArray[np.str_]
    """`train`, `dev` or `test`; the same for all windows of a document."""
    positives: int
    """How many windows with the suffix were found before there were enough."""


def tokens_ending_in(tokenizer: Any, suffix: str) -> NDArray[np.int64]:
    """Return the tokens that, stripped and in lower case, end in a suffix.

    Raises
    ------
    Refusal
        If there is none.
    """
    if tokenizer is None:
        raise Refusal("there is no tokenizer, to tell which tokens end so")
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    found = [at for at, text in enumerate(texts) if text.strip().lower().endswith(suffix.lower())]
    if not suffix or not found:
        raise Refusal(f"no token of {len(texts)} ends in {suffix!r}")
    return np.array(found)


def make_task(
    source: str | Path,
    tokenizer: Any,
    wanted: NDArray[np.int64],
    *,
    items: int = ITEMS,
    length: int = LENGTH,
    seed: int = 0,
    field: str = "text",
    split: str = "train",
) -> Task:
    """Cut balanced windows from a corpus, divided into parts by document.

    Parameters
    ----------
    source, field, split
        As for `robustness.text.corpus.documents`.
    tokenizer
        A transformers tokenizer.
    wanted : array of int
        Tokens that a positive window ends in.
    items : int
        The most windows.
    length : int
        Tokens of a window, besides BOS.
    seed : int
        Of the order of documents and of the choice of windows.

    Raises
    ------
    Refusal
        If there are too few positive windows, or none in one of the parts.
    """
    random = np.random.default_rng(seed)
    bos = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    windows: dict[bool, list[tuple[int, NDArray[np.int32]]]] = {True: [], False: []}
    read = 0
    with opened(source, field=field, split=split) as text:
        for index, chunks in text.documents(seed):
            # Of ids alone, for a document may be long, and which windows are drawn depends on all.
            ids = np.concatenate(
                [piece.ids.astype(np.int32) for piece in encode(tokenizer, chunks)]
            )
            hits = np.isin(ids, wanted)
            places = np.arange(length - 1, len(ids))
            ends = places[hits[places]]
            others = random.permutation(places[~hits[places]])[: len(ends)]
            # Where a document has too few others, positives are left out: each has its counterpart.
            for positive, chosen in ((True, ends[: len(others)]), (False, others)):
                windows[positive] += [
                    (index, ids[end - length + 1 : end + 1].copy()) for end in chosen
                ]
            read += bool(len(ends) and len(others))
            if len(windows[True]) * 2 >= items and read >= 10 * FEWEST_DOCUMENTS:
                break
    count = min(items // 2, len(windows[True]))
    if items // 2 < FEWEST:
        raise Refusal(f"{items} items are too few: ask for --items {2 * FEWEST} or more")
    if count < FEWEST:
        raise Refusal(
            f"{source} has {count} windows of {length} tokens that end so; {FEWEST} are needed: "
            "read more text"
        )
    # The same places of both lists, so that a positive and its counterpart stay together.
    places = np.sort(random.permutation(len(windows[True]))[:count]).tolist()
    rows = [(label, *windows[label][at]) for label in (True, False) for at in places]
    document = np.array([row[1] for row in rows])
    part = _parts(document, random)
    for name in SHARES:
        there = len(np.unique(document[part == name]))
        if there < FEWEST_DOCUMENTS:
            raise Refusal(
                f"{source} gives {there} document(s) for {name}, and {FEWEST_DOCUMENTS} are "
                "needed: read a corpus of more documents"
            )
    return Task(
        tokens=np.array([[*bos, *row[2]] for row in rows], dtype=np.int64),
        label=np.array([row[0] for row in rows]),
        document=document,
        part=part,
        positives=len(windows[True]),
    )


def _parts(document: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.str_]:
    """Give every document to a part, so that the parts have about their share of the items."""
    order = random.permutation(np.unique(document))
    counts = np.array([(document == each).sum() for each in order])
    middle = (np.cumsum(counts) - counts / 2) / counts.sum()
    bounds = np.cumsum(list(SHARES.values()))[:-1]
    names = np.array(list(SHARES))[np.searchsorted(bounds, middle)]
    place = dict(zip(order.tolist(), names.tolist(), strict=True))
    return np.array([place[each] for each in document.tolist()])
