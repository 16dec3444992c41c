"""Word in context: whether a word means the same in two sentences.

The task is that of Pilehvar and Camacho-Collados (2019). A word is represented by the mean of the
residual stream over its tokens, each sentence run alone.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from probes.classifier import Floats, Probe, Split, fit_all, labelled, threshold
from probes.pairs import PARTS, Pair, read
from robustness.errors import Refusal
from robustness.files import resumable
from robustness.files.labels import blank_dataset
from robustness.files.metrics import Metric
from robustness.files.provenance import file_attributes, value_digest
from robustness.measurements.clean_pass import Reading
from robustness.measurements.short_texts import ShortTexts, fill
from robustness.models.model import Model
from robustness.runs.settings import RunOptions
from robustness.text.corpus import source_name
from robustness.trace import numerics

PROBES = ("pair", "concatenation", "threshold", "shuffled")
"""What is done with the two representations g and h of a word.

`pair`: a probe on |g - h| and g ⊙ h. `concatenation`: one on both after each other, which cannot
say whether two things are the same, as it only adds. `threshold`: their cosine, standardised, above
a threshold chosen on dev (Liu et al. 2024). `shuffled`: `pair` with labels in random order, a
control."""

GRID = tuple(np.arange(0, 1, 0.05).round(2).tolist())
"""Thresholds of the cosine that are tried."""

MOST_UNALIGNED = 0.05
"""Largest share of pairs that may be left out because their word's tokens were not found."""


def align(
    sentence: str, span: tuple[int, int], tokenizer: Any, most: int | None
) -> tuple[list[int], NDArray[np.float32]] | None:
    """Return a sentence's tokens, BOS first, and which of them are of the word.

    A token is of the word if it covers one of its characters. None if no token is, or the sentence
    is longer than the model takes.
    """
    encoded = tokenizer(sentence, add_special_tokens=False, return_offsets_mapping=True)
    bos = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    ids = [*bos, *encoded["input_ids"]]
    of_word = [start < span[1] and end > span[0] for start, end in encoded["offset_mapping"]]
    mask = np.array([False] * len(bos) + of_word, dtype=np.float32)
    return None if not mask.any() or (most is not None and len(ids) > most) else (ids, mask)


def mean_of_word(captured: dict[str, Any], text: dict[str, Any]) -> dict[str, Tensor]:
    """Mean of the residual stream over a word's tokens, (width, item)."""
    mask = text["word"][..., None]
    states = numerics.precise(captured["residual"])
    return {"state": ((states * mask).sum(1) / mask.sum(1)).T}


def probe_wic(
    model: Model,
    source: str | Path = "builtin",
    *,
    seed: int = 0,
    batch_tokens: int | None = None,
    out: str | Path | None = None,
    fresh: bool = False,
    command: str = "",
    progress: Callable[[int, int], object] | None = None,
    tell: Callable[[str], object] = lambda text: None,
) -> xr.Dataset:
    """Probe at every depth whether a word means the same in two sentences.

    Parameters
    ----------
    model : Model
        An opened model, whose tokenizer has offsets.
    source : str or path
        As `probes.pairs.read` takes it.
    seed : int
        Of the shuffled labels and the bootstrap.
    batch_tokens : int, optional
        Tokens in a trace.
    out : str or path, optional
        The file; captured states are kept beside it until they are probed.
    fresh : bool
        Whether to throw away what is there.
    command : str
        The command line, for the record.
    progress : callable, optional
        Told how many sentences are done, and how many there are.
    tell : callable
        Told when memory ran out and less is run at once from there on.

    Returns
    -------
    Dataset
        `correct` (probe, depth, item), of the test items; `accuracy`, `accuracy_low`,
        `accuracy_high`, a 95 % bootstrap interval, `dev_accuracy` and `chosen` (probe, depth). The
        attributes say how many pairs of each part were aligned, and how many there were.

    Raises
    ------
    Refusal
        If the source cannot be used, the tokenizer has no offsets, or more than a few pairs are not
        aligned.
    """
    tokenizer = model.tokenizer
    if tokenizer is None or not tokenizer.is_fast:
        raise Refusal(f"the tokenizer of {model.name} has no offsets, to find a word's tokens by")
    pairs = [(part, pair) for part, found in read(source).items() for pair in found]
    aligned = _align_all(pairs, tokenizer, model.context)
    kept = [at for at, sides in enumerate(aligned) if sides is not None]
    if len(kept) < (1 - MOST_UNALIGNED) * len(pairs):
        raise Refusal(
            f"in {len(pairs) - len(kept)} of {len(pairs)} pairs the word's tokens were not found, "
            "or the sentence is longer than the model takes"
        )
    sides = [side for at in kept for side in aligned[at] or ()]
    order = np.argsort([len(ids) for ids, _ in sides], kind="stable")
    parts = np.array([pairs[at][0] for at in kept])
    counts = {
        f"{part}_pairs": f"{(parts == part).sum()} of {sum(name == part for name, _ in pairs)}"
        for part in PARTS
    }
    settings = {
        **model.identity,
        **counts,
        "measurement": "wic",
        "corpus": source_name(source),
        "corpus_sha256": value_digest(
            [(ids, mask.tolist()) for ids, mask in sides]
            + [(pairs[at][0], pairs[at][1].same) for at in kept]
        ),
        "seed": seed,
        "sequences": len(sides),
    }
    state = Metric("state", "1", "mean residual stream over a word's tokens")
    coords = {
        "depth": np.arange(model.layers + 1),
        "feature": np.arange(model.width),
        "sentence": order,
    }
    run = resumable.Run(
        blank_dataset(
            {"state": (state, ("depth", "feature", "sentence"))},
            coords,
            file_attributes(settings, command),
        ),
        path=None if out is None else Path(out),
        fresh=fresh,
        complete=lambda dataset, _: _probe_all(dataset, parts, [pairs[at][1] for at in kept], seed),
    )
    return fill(
        run,
        model,
        ShortTexts(
            [sides[at][0] for at in order],
            details={"word": [sides[at][1] for at in order]},
            fewer="fewer pairs, in a directory of your own",
        ),
        Reading(mean_of_word, final=True),
        RunOptions(batch_tokens=batch_tokens, progress=progress, tell=tell),
    )


def _align_all(
    pairs: Sequence[tuple[str, Pair]], tokenizer: Any, most: int | None
) -> list[list[tuple[list[int], NDArray[np.float32]]] | None]:
    found: list[list[tuple[list[int], NDArray[np.float32]]] | None] = []
    for _, pair in pairs:
        sides = [
            align(sentence, span, tokenizer, most)
            for sentence, span in zip(pair.sentences, pair.spans, strict=True)
        ]
        there = [side for side in sides if side is not None]
        found.append(there if len(there) == len(sides) else None)
    return found


def _probe_all(
    dataset: xr.Dataset, parts: NDArray[Any], pairs: Sequence[Pair], seed: int
) -> xr.Dataset:
    """Fit every method at every depth on the captured states."""
    states = dataset["state"].values[..., np.argsort(dataset["sentence"].values)]
    same = np.array([pair.same for pair in pairs])
    depths = states.shape[0]
    probes: dict[str, list[Probe]] = {method: [] for method in PROBES}
    makers = {
        "pair": _pair_features,
        "concatenation": lambda g, h: np.concatenate([g, h], 1),
        "shuffled": _pair_features,
    }
    for method, make in makers.items():

        def split(depth: int, method: str = method, make: Any = make) -> Split:
            found = _split(make(*_sides(states[depth])), same, parts)
            return found.shuffled(seed + depth) if method == "shuffled" else found

        jobs = [lambda depth=depth, split=split: split(depth) for depth in range(depths)]
        probes[method] = fit_all(jobs)
    for depth in range(depths):
        cosines = _standardised_cosine(*_sides(states[depth]), parts)
        probes["threshold"].append(threshold(_split(cosines[:, None], same, parts), GRID))
    chosen = [pair for pair, part in zip(pairs, parts, strict=True) if part == "test"]
    found = [labelled(probes[name], "depth", np.arange(len(chosen)), seed) for name in PROBES]
    return (
        xr.concat(found, "probe")
        .assign_coords(
            probe=list(PROBES),
            depth=dataset["depth"],
            item=np.arange(len(chosen)),
            word=("item", [pair.word for pair in chosen]),
            same=("item", [int(pair.same) for pair in chosen]),
        )
        .assign_attrs(dataset.attrs)
    )


def _sides(states: Floats) -> tuple[Floats, Floats]:
    """Return the representations of a word in both sentences, (pair, feature) each."""
    return states[:, 0::2].T, states[:, 1::2].T


def _pair_features(g: Floats, h: Floats) -> Floats:
    return np.concatenate([np.abs(g - h), g * h], 1)


def _standardised_cosine(g: Floats, h: Floats, parts: NDArray[Any]) -> Floats:
    train = np.concatenate([side[parts == "train"] for side in (g, h)])
    mean, deviation = train.mean(0), train.std(0) + 1e-12
    g, h = (g - mean) / deviation, (h - mean) / deviation
    norms = np.linalg.norm(g, axis=1) * np.linalg.norm(h, axis=1)
    cosine: Floats = (g * h).sum(1) / np.maximum(norms, 1e-12)
    return cosine


def _split(features: Floats, labels: NDArray[np.bool_], parts: NDArray[Any]) -> Split:
    train, dev, test = ((features[parts == part], labels[parts == part]) for part in PARTS)
    return Split(train, dev, test)
