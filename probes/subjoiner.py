"""Heads that gather the pieces of a word: attention from its last token to the earlier ones.

Two classes of inputs of 16 tokens after BOS: in one, the last tokens are the pieces of one word; in
the other, the last token is a word of its own. A head's score is the weight that goes from the last
token to where the earlier pieces are (or would be), in the first class less in the second. Ferrando
and Voita (2024) call them subword-merging heads.
"""

import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from probes.classifier import interval_of_difference
from robustness.errors import Refusal
from robustness.files import resumable
from robustness.files.labels import blank_dataset, layer_coords
from robustness.files.metrics import Metric
from robustness.files.provenance import file_attributes, value_digest
from robustness.measurements.clean_pass import Reading
from robustness.measurements.short_texts import ShortTexts, fill
from robustness.models.model import Model
from robustness.runs.settings import RunOptions
from robustness.statistics.uncertainty import standard_error
from robustness.text.corpus import documents, source_name
from robustness.text.encoding import Tokens, encode

LENGTH = 16
"""Tokens of an input, besides BOS."""

PIECES = 4
"""Tokens of a word in pieces."""

ITEMS = 1000
"""The most inputs of each class."""

FEWEST = 40
"""Inputs of each class that there must be."""

FEWEST_WORDS = 10
"""Distinct words of each class that there must be in each half."""

PERMUTATIONS = 1000

WORD = re.compile(r"[a-z]+")
"""A word that is used: lower case, letters alone."""

CLASSES = ("pieces", "whole")


@dataclass(frozen=True, eq=False)
class Inputs:
    """Inputs of both classes."""

    tokens: NDArray[np.int64]
    """(item, token), BOS first where there is one."""
    pieces: NDArray[np.bool_]
    """Whether the last tokens are pieces of one word."""
    word: NDArray[np.str_]
    """What the input ends in."""
    held_out: NDArray[np.bool_]
    """Whether heads are measured on it; they are found on the others. The same for all inputs that
    end in one word."""


def make_inputs(
    source: str | Path,
    tokenizer: Any,
    *,
    pieces: int = PIECES,
    length: int = LENGTH,
    items: int = ITEMS,
    seed: int = 0,
    field: str = "text",
    split: str = "train",
) -> Inputs:
    """Cut inputs from a corpus: running text that ends in a word of so many pieces, or of one.

    Parameters
    ----------
    source, field, split
        As for `robustness.text.corpus.documents`.
    tokenizer
        A transformers tokenizer.
    pieces : int
        Tokens of a word in pieces.
    length : int
        Tokens of an input, besides BOS.
    items : int
        The most inputs of each class.
    seed : int
        Of the order of documents, and of which words are held out.

    Raises
    ------
    Refusal
        If there are too few inputs of either class.
    """
    if tokenizer is None or not tokenizer.is_fast:
        raise Refusal("there is no tokenizer with offsets, to find a word's tokens by")
    bos = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    found: dict[bool, list[tuple[str, list[int]]]] = {True: [], False: []}
    for _, text in documents(source, seed=seed, field=field, split=split):
        whole = 0
        for word, ids, count in _words(text, tokenizer, length):
            # Whole words are many: of each document a few will do, so that more documents count.
            if count not in (1, pieces) or len(ids) < length or (count == 1 and whole > 2):
                continue
            whole += count == 1
            kind = count == pieces
            if len(found[kind]) < items:
                found[kind].append((word, ids))
            if len(found[True]) >= items and (whole > 2 or len(found[False]) >= items):
                break
        if min(len(rows) for rows in found.values()) >= items:
            break
    for kind, rows in found.items():
        if len(rows) < FEWEST:
            what = f"{pieces} tokens" if kind else "one token"
            raise Refusal(
                f"{source} has {len(rows)} words of {what} after enough text; {FEWEST} are needed: "
                "read more text, or ask for words of other --pieces"
            )
    inputs = [(kind, word, ids) for kind in (True, False) for word, ids in found[kind]]
    words = np.array([word for _, word, _ in inputs])
    held_out = np.zeros(len(words), np.bool_)
    random = np.random.default_rng(seed)
    for kind in (True, False):
        distinct = np.unique([word for other, word, _ in inputs if other == kind])
        if len(distinct) < 2 * FEWEST_WORDS:
            raise Refusal(
                f"{source} has {len(distinct)} different words of {pieces if kind else 1} "
                f"token(s); {2 * FEWEST_WORDS} are needed: read more text, or ask for words of "
                "other --pieces"
            )
        held_out |= np.isin(words, random.permutation(distinct)[::2])
    return Inputs(
        tokens=np.array([bos + ids for *_, ids in inputs], dtype=np.int64),
        pieces=np.array([kind for kind, *_ in inputs]),
        word=words,
        held_out=held_out,
    )


def _words(text: str, tokenizer: Any, length: int) -> Iterator[tuple[str, list[int], int]]:
    """Yield the words that are used, the last tokens up to each one's end, and their count."""
    tokens = (
        (token, *span)
        for piece in encode(tokenizer, [text], spans=True)
        for token, span in zip(piece.ids.tolist(), _spans(piece), strict=True)
    )
    token = next(tokens, None)
    before: deque[int] = deque(maxlen=length)
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


def _spans(tokens: Tokens) -> list[list[int]]:
    assert tokens.spans is not None
    found: list[list[int]] = tokens.spans.tolist()
    return found


def last_row(captured: dict[str, Any], text: dict[str, Any]) -> dict[str, Tensor]:
    """Attention of the last token to the last `length` tokens, (head, key, item)."""
    pattern = captured["pattern"]
    return {"weight": pattern[:, :, -1, -text["length"] :].permute(1, 2, 0)}


def probe_subjoiner(
    model: Model,
    source: str | Path,
    *,
    pieces: int = PIECES,
    items: int = ITEMS,
    seed: int = 0,
    field: str = "text",
    split: str = "train",
    batch_tokens: int | None = None,
    out: str | Path | None = None,
    fresh: bool = False,
    command: str = "",
    progress: Callable[[int, int], object] | None = None,
    tell: Callable[[str], object] = lambda text: None,
) -> xr.Dataset:
    """Find the heads that gather the pieces of a word.

    Parameters
    ----------
    model : Model
        An opened model.
    source, pieces, items, seed, field, split
        As for `make_inputs`.
    batch_tokens, out, fresh, command, progress, tell
        As for `robustness.measurements.observation.observe`, with one file.

    Returns
    -------
    Dataset
        `attention` (input_class, layer, head, key), the mean weight from the last token, key 0
        being that token and -1 the one before, on held-out words; `score` (layer, head), the weight
        on the earlier pieces in the first class less in the second, with `score_low` and
        `score_high`, a 95 % bootstrap interval over words; `finding_score` (layer, head), the same
        on the words that heads are found by; `found` (layer, head), whether that is above
        `threshold`, what the best of all heads reaches in one of twenty random divisions into
        classes; `monotone` (layer, head), the share of inputs whose pieces get less weight the
        later they come, NaN for words of two pieces.

    Raises
    ------
    Refusal
        If the corpus has too few such words, or the model's attention is not found.
    """
    if pieces < 2:
        raise Refusal(f"a word in pieces has 2 or more, not {pieces}")
    inputs = make_inputs(
        source, model.tokenizer, pieces=pieces, items=items, seed=seed, field=field, split=split
    )
    heads = int(model.config.num_attention_heads)
    settings = {
        **model.identity,
        "measurement": "subjoiner",
        "pieces": pieces,
        "corpus": source_name(source),
        "window": LENGTH,
        "bos": "first" if len(inputs.tokens[0]) > LENGTH else "none",
        "corpus_sha256": value_digest((inputs.tokens.tolist(), inputs.held_out.tolist())),
        "words_in_pieces": int(inputs.pieces.sum()),
        "whole_words": int((~inputs.pieces).sum()),
        "seed": seed,
        "sequences": len(inputs.tokens),
    }
    weight = Metric("weight", "1", "attention weight from the last token")
    run = resumable.Run(
        blank_dataset(
            {"weight": (weight, ("layer", "head", "key", "input"))},
            {
                **layer_coords(model.layers),
                "head": np.arange(heads),
                "key": np.arange(-LENGTH + 1, 1),
                "input": np.arange(len(inputs.tokens)),
            },
            file_attributes(settings, command),
        ),
        path=None if out is None else Path(out),
        fresh=fresh,
        complete=lambda dataset, _: _score(dataset, inputs, pieces, seed),
    )
    return fill(
        run,
        model,
        ShortTexts(inputs.tokens.tolist(), settings={"length": LENGTH}, fewer="fewer `items`"),
        Reading(last_row, needs=("pattern",)),
        RunOptions(batch_tokens=batch_tokens, progress=progress, tell=tell),
    )


def _score(dataset: xr.Dataset, inputs: Inputs, pieces: int, seed: int) -> xr.Dataset:
    """Score every head on both halves of the words."""
    attention = dataset["weight"]
    weight = attention.sel(key=slice(1 - pieces, -1))
    gathered = weight.sum("key").values.astype(np.float64)
    finding, held_out = ~inputs.held_out, inputs.held_out
    random = np.random.default_rng(seed)

    def difference(label: NDArray[np.bool_], rows: NDArray[np.bool_]) -> Any:
        both = gathered[..., rows]
        return both[..., label].mean(-1) - both[..., ~label].mean(-1)

    # A word is of one class with all of its inputs, so words are permuted and not inputs.
    labels = inputs.pieces[finding]
    _, first, word = np.unique(inputs.word[finding], return_index=True, return_inverse=True)
    best = [
        float(difference(random.permutation(labels[first])[word], finding).max())
        for _ in range(PERMUTATIONS)
    ]
    threshold = float(np.quantile(best, 0.95))
    found_by = difference(labels, finding)
    score = difference(inputs.pieces[held_out], held_out)
    bounds = np.full((*score.shape, 2), np.nan)
    for layer, head in np.ndindex(*score.shape):
        values, kinds = gathered[layer, head][held_out], inputs.pieces[held_out]
        bounds[layer, head] = interval_of_difference(values, kinds, inputs.word[held_out], seed)
    in_pieces = weight.values[..., held_out & inputs.pieces]
    monotone = (np.diff(in_pieces, axis=2) < 0).all(2).mean(-1)
    if pieces < 3:
        monotone[:] = np.nan
    rows = [held_out & kind for kind in (inputs.pieces, ~inputs.pieces)]
    means = [attention.values[..., chosen].mean(-1) for chosen in rows]
    errors = [_error(attention.values[..., chosen], inputs.word[chosen]) for chosen in rows]
    dims = ("layer", "head")

    def described(name: str) -> dict[str, str]:
        return {"units": "1", "long_name": name}

    return xr.Dataset(
        {
            "attention": (
                ("input_class", *dims, "key"),
                np.stack(means),
                described("mean attention weight from the last token, held-out words"),
            ),
            "attention_standard_error": (
                ("input_class", *dims, "key"),
                np.stack(errors),
                described("standard error of attention, clustered by word"),
            ),
            "score": (dims, score, described("weight on earlier pieces, in pieces less whole")),
            "score_low": (dims, bounds[..., 0], described("lower bound of score, 95 % bootstrap")),
            "score_high": (dims, bounds[..., 1], described("upper bound of score, 95 % bootstrap")),
            "finding_score": (dims, found_by, described("score on the words heads are found by")),
            "found": (
                dims,
                (found_by > threshold).astype(np.int8),
                described("whether finding_score is above threshold"),
            ),
            "threshold": (
                (),
                threshold,
                described("what the best head reaches in 1 of 20 random divisions"),
            ),
            "monotone": (dims, monotone, described("share of inputs with falling weights")),
        },
        coords={
            **{name: dataset[name] for name in ("layer", "relative_depth", "head", "key")},
            "input_class": list(CLASSES),
        },
        attrs=dataset.attrs,
    )


def _error(values: NDArray[Any], cluster: NDArray[Any]) -> NDArray[np.float64]:
    """Standard error of the mean over the last dimension, clustered; see `uncertainty`."""
    data = xr.DataArray(values, dims=[*(f"d{at}" for at in range(values.ndim - 1)), "sequence"])
    data = data.assign_coords(document=("sequence", np.unique(cluster, return_inverse=True)[1]))
    return standard_error(data).values
