"""Heads that gather the pieces of a word: attention from its last token to the earlier ones.

There are two classes of inputs of 16 tokens after BOS. In one, the last tokens are the pieces of
one word; in the other, the last token is a whole word. A head's score is the attention weight from
the last token to the positions of the earlier pieces, in the first class minus in the second.
Ferrando and Voita (2024) call such heads subword-merging heads.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from probes.classifier import interval_of_difference
from probes.settings import SubjoinerSettings
from probes.words_in_pieces import INPUT_TOKENS, Inputs, make_inputs
from robustness.files import resumable
from robustness.files.labels import blank_dataset, layer_coords
from robustness.files.metrics import Metric
from robustness.files.provenance import file_attributes, value_digest
from robustness.measurements.clean_pass import Reading
from robustness.measurements.short_texts import ShortTexts, fill
from robustness.models.model import Model
from robustness.runs.settings import RunOptions
from robustness.statistics.uncertainty import standard_error
from robustness.text.sources import source_name

PERMUTATIONS = 1000
"""Number of random divisions of the words into classes."""

CLASSES = ("pieces", "whole")
"""Classes of inputs: words in pieces, and whole words."""

HEAD = ("layer", "head")
"""Dimensions of variables with a value for every head."""


def last_row(captured: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the attention of the last token to the last `length` tokens, (head, key, item)."""
    pattern = captured["pattern"]
    return {"weight": pattern[:, :, -1, -text["length"] :].permute(1, 2, 0)}


def probe_subjoiner(
    model: Model,
    settings: SubjoinerSettings | None = None,
    options: RunOptions | None = None,
) -> xr.Dataset:
    """Find the heads that gather the pieces of a word.

    Parameters
    ----------
    model : Model
        An opened model.
    settings : SubjoinerSettings, optional
        Which corpus is read, and how many pieces a word has.
    options : RunOptions, optional
        `out` is the file. `state_cap` has no influence.

    Returns
    -------
    Dataset
        `attention` (input_class, layer, head, key): the mean weight from the last token, on
        held-out words; key 0 is that token, key -1 the one before. `score` (layer, head): the
        weight on the earlier pieces in the first class minus in the second, with the bounds of a
        95 % bootstrap interval over words, `score_low` and `score_high`. `finding_score` (layer,
        head): the score on the words that heads are selected on. `found` (layer, head): whether
        this is above `threshold`, the 95 % quantile of the best head's score over random divisions
        into classes. `monotone` (layer, head): the share of inputs whose pieces get less weight the
        later they come, NaN for words of two pieces.

    Raises
    ------
    Refusal
        If the corpus has too few such words, or the model's attention is not found.
    """
    settings, options = settings or SubjoinerSettings(), options or RunOptions()
    inputs = make_inputs(model.tokenizer, settings)
    run = resumable.Run(
        _blank(model, inputs, settings, options.command),
        path=options.out,
        fresh=options.fresh,
        complete=lambda dataset, _: score_heads(dataset, inputs, settings),
    )
    texts = ShortTexts(
        inputs.tokens.tolist(), settings={"length": INPUT_TOKENS}, fewer="fewer `items`"
    )
    return fill(run, model, texts, Reading(last_row, needs=("pattern",)), options)


def _blank(model: Model, inputs: Inputs, settings: SubjoinerSettings, command: str) -> xr.Dataset:
    """Return the empty dataset of attention weights."""
    described = {
        **model.identity,
        "measurement": "subjoiner",
        "pieces": settings.pieces,
        "corpus": source_name(settings.source),
        "window": INPUT_TOKENS,
        "bos": "first" if len(inputs.tokens[0]) > INPUT_TOKENS else "none",
        "corpus_sha256": value_digest((inputs.tokens.tolist(), inputs.held_out.tolist())),
        "words_in_pieces": int(inputs.pieces.sum()),
        "whole_words": int((~inputs.pieces).sum()),
        "seed": settings.seed,
        "sequences": len(inputs.tokens),
    }
    weight = Metric("weight", "1", "attention weight from the last token")
    coords = {
        **layer_coords(model.layers),
        "head": np.arange(int(model.config.num_attention_heads)),
        "key": np.arange(-INPUT_TOKENS + 1, 1),
        "input": np.arange(len(inputs.tokens)),
    }
    variables = {"weight": (weight, ("layer", "head", "key", "input"))}
    return blank_dataset(variables, coords, file_attributes(described, command))


def score_heads(dataset: xr.Dataset, inputs: Inputs, settings: SubjoinerSettings) -> xr.Dataset:
    """Score every head on both halves of the words.

    Parameters
    ----------
    dataset : Dataset
        `weight` (layer, head, key, input), from the last token.
    inputs : Inputs
        The inputs.
    settings : SubjoinerSettings
        Settings, of which `pieces` and `seed` are used.

    Returns
    -------
    Dataset
        As `probe_subjoiner` returns it.
    """
    attention = dataset["weight"]
    earlier = attention.sel(key=slice(1 - settings.pieces, -1))
    gathered = earlier.sum("key").values.astype(np.float64)
    # Heads are selected on one half of the words and scored on the other: the score of the best of
    # many would be too high on the words that it was selected on.
    finding, held_out = ~inputs.held_out, inputs.held_out
    finding_score = _difference(gathered[..., finding], inputs.pieces[finding])
    threshold = _threshold(gathered[..., finding], inputs, settings.seed)
    score = _difference(gathered[..., held_out], inputs.pieces[held_out])
    low, high = _bounds(gathered[..., held_out], inputs, settings.seed)
    scores = {
        "score": (score, "weight on earlier pieces, in pieces less whole"),
        "score_low": (low, "lower bound of score, 95 % bootstrap"),
        "score_high": (high, "upper bound of score, 95 % bootstrap"),
        "finding_score": (finding_score, "score on the words heads are found by"),
        "found": (
            (finding_score > threshold).astype(np.int8),
            "whether finding_score is above threshold",
        ),
        "monotone": (
            _monotone(earlier.values[..., held_out & inputs.pieces]),
            "share of inputs with falling weights",
        ),
    }
    scored = xr.Dataset(
        _mean_attention(attention.values, inputs),
        coords={
            **{name: dataset[name] for name in ("layer", "relative_depth", "head", "key")},
            "input_class": list(CLASSES),
        },
        attrs=dataset.attrs,
    )
    for name, (values, long_name) in scores.items():
        scored[name] = (HEAD, values, _described(long_name))
    best = "what the best head reaches in 1 of 20 random divisions"
    scored["threshold"] = ((), threshold, _described(best))
    return scored


def _difference(gathered: NDArray[np.float64], in_pieces: NDArray[np.bool_]) -> Any:
    """Return the mean over inputs in pieces minus the mean over whole words, (layer, head)."""
    return gathered[..., in_pieces].mean(-1) - gathered[..., ~in_pieces].mean(-1)


def _threshold(gathered: NDArray[np.float64], inputs: Inputs, seed: int) -> float:
    """Return the 95 % quantile of the best head's score over random divisions into classes."""
    random = np.random.default_rng(seed)
    labels = inputs.pieces[~inputs.held_out]
    words = inputs.word[~inputs.held_out]
    # All inputs of a word are in one class, so words are permuted, and not inputs.
    _, first, word = np.unique(words, return_index=True, return_inverse=True)
    best = []
    for _ in range(PERMUTATIONS):
        shuffled = random.permutation(labels[first])[word]
        best.append(float(_difference(gathered, shuffled).max()))
    return float(np.quantile(best, 0.95))


def _bounds(
    gathered: NDArray[np.float64], inputs: Inputs, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the bounds of every head's score, on held-out inputs."""
    in_pieces, words = inputs.pieces[inputs.held_out], inputs.word[inputs.held_out]
    heads = gathered.shape[:-1]
    low, high = np.full(heads, np.nan), np.full(heads, np.nan)
    for at in np.ndindex(*heads):
        low[at], high[at] = interval_of_difference(gathered[at], in_pieces, words, seed)
    return low, high


def _monotone(weight: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the share of inputs, (layer, head), whose pieces get less weight the later they come.

    Weights are (layer, head, piece, input). The share is NaN if there is one earlier piece only.
    """
    if weight.shape[2] < 2:
        return np.full(weight.shape[:2], np.nan)
    share: NDArray[np.float64] = (np.diff(weight, axis=2) < 0).all(2).mean(-1)
    return share


def _mean_attention(weight: NDArray[np.floating[Any]], inputs: Inputs) -> dict[str, Any]:
    """Return means and standard errors on held-out inputs, (input_class, layer, head, key)."""
    means, errors = [], []
    for kind in (inputs.pieces, ~inputs.pieces):
        rows = inputs.held_out & kind
        means.append(weight[..., rows].mean(-1))
        errors.append(_error(weight[..., rows], inputs.word[rows]))
    dims = ("input_class", *HEAD, "key")
    mean = "mean attention weight from the last token, held-out words"
    error = "standard error of attention, clustered by word"
    return {
        "attention": (dims, np.stack(means), _described(mean)),
        "attention_standard_error": (dims, np.stack(errors), _described(error)),
    }


def _described(long_name: str) -> dict[str, str]:
    return {"units": "1", "long_name": long_name}


def _error(values: NDArray[Any], cluster: NDArray[Any]) -> NDArray[np.float64]:
    """Return the clustered standard error of the mean over the last dimension."""
    # `standard_error` takes clusters from the coordinate `document` along `sequence`.
    data = xr.DataArray(values, dims=[*HEAD, "key", "sequence"])
    data = data.assign_coords(document=("sequence", np.unique(cluster, return_inverse=True)[1]))
    return standard_error(data).values
