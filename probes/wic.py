"""Word in context: whether a word means the same in two sentences.

The task is that of Pilehvar and Camacho-Collados (2019). Each sentence is run alone, and a word is
represented by the mean of the residual stream over its tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import psutil
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from probes.classifier import Floats, Probe, Split, fit_all, labelled, threshold
from probes.pairs import PARTS, Pair, read_pairs
from probes.settings import WicSettings
from robustness.errors import Refusal
from robustness.files import resumable
from robustness.files.labels import blank_dataset
from robustness.files.metrics import Metric
from robustness.files.provenance import file_attributes, value_digest
from robustness.measurements.clean_pass import Reading
from robustness.measurements.short_texts import ShortTexts, fill
from robustness.models.model import Model
from robustness.runs.settings import RunOptions
from robustness.text.sources import source_name
from robustness.trace import numerics

PROBES = ("pair", "concatenation", "threshold", "shuffled")
"""Probes of the two representations g and h of a word.

`pair`: a probe on |g - h| and g ⊙ h. `concatenation`: a probe on g and h, which cannot compare
them because it is linear. `threshold`: whether the cosine of the standardised representations is
above a threshold chosen on dev (Liu et al. 2024). `shuffled`: `pair` with labels in random order,
a control."""

GRID = tuple(np.arange(0, 1, 0.05).round(2).tolist())
"""Thresholds that are tried for the cosine."""

Aligned = tuple[list[int], NDArray[np.float32]]
"""Token ids of a sentence, and a mask of those that belong to the word."""

MOST_UNALIGNED = 0.05
"""Maximum share of pairs that are left out because their word's tokens were not found."""


def align(sentence: str, span: tuple[int, int], tokenizer: Any, most: int | None) -> Aligned | None:
    """Return the tokens of a sentence, BOS first, and a mask of those that belong to the word.

    A token belongs to the word if it covers one of its characters. None is returned if no token
    does, or if the sentence has more than `most` tokens.
    """
    encoded = tokenizer(sentence, add_special_tokens=False, return_offsets_mapping=True)
    bos = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    ids = [*bos, *encoded["input_ids"]]
    of_word = [start < span[1] and end > span[0] for start, end in encoded["offset_mapping"]]
    mask = np.array([False] * len(bos) + of_word, dtype=np.float32)
    return None if not mask.any() or (most is not None and len(ids) > most) else (ids, mask)


def mean_of_word(captured: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the mean of the residual stream over a word's tokens, (width, item)."""
    mask = text["word"][..., None]
    states = numerics.precise(captured["residual"])
    return {"state": ((states * mask).sum(1) / mask.sum(1)).T}


def of_chosen_depths(
    of_depths: Sequence[dict[str, Tensor]], modules: Mapping[str, Any], text: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return the states at the depths that are probed, (depth, width, item).

    They have the type that is asked for: half as many bytes come from a server whose own states are
    in half precision, and only words of several tokens are rounded by it.
    """
    states = torch.stack([of_depths[depth]["state"] for depth in text["depths"]])
    return {"state": states.to(getattr(torch, text["kind"]))}


@dataclass(frozen=True, eq=False)
class _Sentences:
    """Pairs whose words are found in both sentences, and these sentences."""

    pairs: list[Pair]
    """The pairs."""
    part: NDArray[np.str_]
    """Part of every pair."""
    sides: list[Aligned]
    """Both sentences of the first pair, both of the second, and so on."""
    counts: dict[str, str]
    """Numbers of aligned and of all pairs, by part, as attributes of the file."""

    @property
    def digest(self) -> str:
        """Hash of tokens, masks, parts and labels."""
        tokens = [(ids, mask.tolist()) for ids, mask in self.sides]
        labels = [(str(p), pair.same) for p, pair in zip(self.part, self.pairs, strict=True)]
        return value_digest(tokens + labels)


def probe_wic(
    model: Model, settings: WicSettings | None = None, options: RunOptions | None = None
) -> xr.Dataset:
    """Probe at every depth whether a word means the same in two sentences.

    Parameters
    ----------
    model : Model
        An opened model, whose tokenizer has offsets.
    settings : WicSettings, optional
        Which pairs are read.
    options : RunOptions, optional
        `out` is the file; captured states are kept beside it until they are probed. `state_cap`
        has no influence.

    Returns
    -------
    Dataset
        `correct` (probe, depth, item) for the test items; `accuracy` with the bounds of its 95 %
        bootstrap interval, `accuracy_low` and `accuracy_high`, `dev_accuracy` and `chosen` (probe,
        depth). Attributes hold the numbers of aligned and of all pairs, by part.

    Raises
    ------
    Refusal
        If the source cannot be used, the tokenizer has no offsets, or more than a few pairs are not
        aligned.
    """
    settings, options = settings or WicSettings(), options or RunOptions()
    read_in = _read_sentences(model, settings)
    depths = sorted({*range(0, model.layers, settings.every), model.layers})
    _check_memory(model, len(depths), len(read_in.sides))
    # In order of length, so that batches have little padding.
    order = np.argsort([len(ids) for ids, _ in read_in.sides], kind="stable")
    run = resumable.Run(
        _blank(model, read_in, order, depths, settings, options.command),
        path=options.out,
        fresh=options.fresh,
        complete=lambda states, _: fit_depths(states, read_in.part, read_in.pairs, settings.seed),
    )
    tokens, masks = zip(*(read_in.sides[at] for at in order), strict=True)
    texts = ShortTexts(
        tokens,
        details={"word": masks},
        settings={"depths": depths, "kind": _kind(model)},
        fewer="fewer pairs, in a directory of your own",
    )
    reading = Reading(mean_of_word, of_chosen_depths, final=True, half=_is_half(model))
    return fill(run, model, texts, reading, options)


def _is_half(model: Model) -> bool:
    """Whether states come from a server in half precision."""
    return bool(model.request) and model.identity["dtype"] in ("bfloat16", "float16")


def _kind(model: Model) -> str:
    """Return the type in which states leave the trace."""
    return model.identity["dtype"] if _is_half(model) else model.precision


def _check_memory(model: Model, depths: int, sentences: int) -> None:
    """Refuse more states than memory has room for."""
    needed = depths * model.width * sentences * np.dtype(model.precision).itemsize
    free = psutil.virtual_memory().available
    if needed > free:
        raise Refusal(
            f"the states of words in {sentences:,} sentences at {depths} depths take "
            f"{needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free: ask for a larger `every`, "
            "or for fewer pairs, in a directory of your own"
        )


def _read_sentences(model: Model, settings: WicSettings) -> _Sentences:
    """Read pairs, and find the tokens of their words."""
    tokenizer = model.tokenizer
    if tokenizer is None or not tokenizer.is_fast:
        raise Refusal(f"the tokenizer of {model.name} has no offsets, to find a word's tokens by")
    pairs: list[Pair] = []
    parts: list[str] = []
    sides: list[Aligned] = []
    counts: dict[str, str] = {}
    total = 0
    for part, of_part in read_pairs(settings.source).items():
        total += len(of_part)
        before = len(pairs)
        for pair in of_part:
            both = _align_both(pair, tokenizer, model.context)
            if both is not None:
                pairs.append(pair)
                parts.append(part)
                sides.extend(both)
        counts[f"{part}_pairs"] = f"{len(pairs) - before} of {len(of_part)}"
    if len(pairs) < (1 - MOST_UNALIGNED) * total:
        raise Refusal(
            f"in {total - len(pairs)} of {total} pairs the word's tokens were not found, "
            "or the sentence is longer than the model takes"
        )
    return _Sentences(pairs, np.array(parts), sides, counts)


def _align_both(pair: Pair, tokenizer: Any, most: int | None) -> list[Aligned] | None:
    """Return both sentences of a pair with their word's tokens, or None if one has none."""
    sides = []
    for sentence, span in zip(pair.sentences, pair.spans, strict=True):
        side = align(sentence, span, tokenizer, most)
        if side is None:
            return None
        sides.append(side)
    return sides


def _blank(
    model: Model,
    read_in: _Sentences,
    order: NDArray[np.int64],
    depths: Sequence[int],
    settings: WicSettings,
    command: str,
) -> xr.Dataset:
    """Return the empty dataset of the words' states, with sentences in order of length."""
    described = {
        **model.identity,
        **read_in.counts,
        "measurement": "wic",
        "corpus": source_name(settings.source),
        "corpus_sha256": read_in.digest,
        "seed": settings.seed,
        "sequences": len(read_in.sides),
        "states_dtype": _kind(model) if _is_half(model) else None,
    }
    coords = {
        "depth": np.array(depths),
        "feature": np.arange(model.width),
        "sentence": order,
    }
    state = Metric("state", "1", "mean residual stream over a word's tokens")
    variables = {"state": (state, ("depth", "feature", "sentence"))}
    return blank_dataset(variables, coords, file_attributes(described, command))


def fit_depths(
    dataset: xr.Dataset, parts: NDArray[Any], pairs: Sequence[Pair], seed: int
) -> xr.Dataset:
    """Fit every method at every depth on the captured states.

    Parameters
    ----------
    dataset : Dataset
        `state` (depth, feature, sentence), both sentences of every pair.
    parts : array of str of shape (pair,)
        Part of every pair.
    pairs : sequence of Pair
        The pairs.
    seed : int
        Seed of the shuffled labels and the bootstrap.

    Returns
    -------
    Dataset
        As `probe_wic` returns it.
    """
    # Back into the order of pairs: both sentences of the first, both of the second, and so on.
    order = np.argsort(dataset["sentence"].values)
    # A depth at a time, so that no second copy of all states is in memory.
    states = [partial(np.take, state, order, 1) for state in dataset["state"].values]
    same = np.array([pair.same for pair in pairs])
    words = np.array([pair.word for pair in pairs])
    tested = parts == "test"
    fitted = []
    for method in PROBES:
        probes = _fit(method, states, same, parts, seed)
        fitted.append(labelled(probes, "depth", np.arange(tested.sum()), seed))
    return (
        xr.concat(fitted, "probe")
        .assign_coords(
            probe=list(PROBES),
            depth=dataset["depth"],
            item=np.arange(tested.sum()),
            word=("item", words[tested].tolist()),
            same=("item", same[tested].astype(np.int64)),
        )
        .assign_attrs(dataset.attrs)
    )


def _fit(
    method: str,
    states: Sequence[Callable[[], Floats]],
    same: NDArray[np.bool_],
    parts: NDArray[Any],
    seed: int,
) -> list[Probe]:
    """Fit a probe of one kind at every depth."""
    if method == "threshold":
        probes = []
        for state in states:
            cosines = _standardised_cosine(*_sides(state()), parts)
            probes.append(threshold(_split(cosines[:, None], same, parts), GRID))
        return probes
    features = _concatenated if method == "concatenation" else _pair_features

    def split(depth: int) -> Split:
        whole = _split(features(*_sides(states[depth]())), same, parts)
        return whole.shuffled(seed + depth) if method == "shuffled" else whole

    return fit_all([partial(split, depth) for depth in range(len(states))])


def _sides(states: Floats) -> tuple[Floats, Floats]:
    """Return the representations of a word in both sentences, (pair, feature) each."""
    return states[:, 0::2].T, states[:, 1::2].T


def _concatenated(g: Floats, h: Floats) -> Floats:
    return np.concatenate([g, h], 1)


def _pair_features(g: Floats, h: Floats) -> Floats:
    return np.concatenate([np.abs(g - h), g * h], 1)


def _standardised_cosine(g: Floats, h: Floats, parts: NDArray[Any]) -> Floats:
    """Return the cosine of both representations, standardised by those of the train part."""
    # A few features are far larger than the others, and would decide the cosine alone.
    train = np.concatenate([g[parts == "train"], h[parts == "train"]])
    mean, deviation = train.mean(0), train.std(0) + 1e-12
    g, h = (g - mean) / deviation, (h - mean) / deviation
    norms = np.linalg.norm(g, axis=1) * np.linalg.norm(h, axis=1)
    cosine: Floats = (g * h).sum(1) / np.maximum(norms, 1e-12)
    return cosine


def _split(features: Floats, labels: NDArray[np.bool_], parts: NDArray[Any]) -> Split:
    return Split.by_part(features, labels, parts, PARTS)
