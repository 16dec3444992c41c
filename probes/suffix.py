"""Prediction of a suffix of the next token from groups of prediction and suppression neurons.

Half of the windows of 24 tokens end in a token with the suffix. A probe sees activations of MLP
neurons at the token before. Predictions are made by an ensemble if groups of neurons predict better
than any single one, and neurons that lower the logits of the suffix as well as those that raise
them.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Module

from probes.neuron_choice import NEURONS, choose_neurons, draw_controls
from probes.neuron_groups import fit_groups
from probes.settings import SuffixSettings
from probes.windows import SHARES, WINDOW_TOKENS, Task, make_task, tokens_ending_in
from robustness.errors import Refusal
from robustness.files import resumable
from robustness.files.labels import blank_dataset
from robustness.files.metrics import Metric
from robustness.files.provenance import file_attributes, value_digest
from robustness.measurements.clean_pass import Reading
from robustness.measurements.prediction_neurons import neurons
from robustness.measurements.short_texts import ShortTexts, divide, fill, foresee
from robustness.models.model import Model
from robustness.models.output_weights import open_weights
from robustness.models.settings import ModelSettings
from robustness.runs.settings import RunOptions
from robustness.text.sources import source_name
from robustness.trace import numerics, readout
from robustness.trace.unembedding import predictor


def read_neurons(captured: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return activations of chosen and of random neurons, (neuron, item), before the last token."""
    # The last token is the one to predict, so the one before it is read.
    place = torch.arange(len(text["lengths"]), device=text["lengths"].device), text["lengths"] - 2
    if "layer" not in captured:
        return {"final": captured["residual"][place]}
    activations = numerics.precise(captured["neurons"][place]).T
    first, last = text["of_layer"][captured["layer"]]
    return {name: activations[text[name][first:last]] for name in ("activation", "control")}


def read_answer(
    taken: Sequence[dict[str, Tensor]], parts: Mapping[str, Any], text: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Join the layers, and add the model's own prediction.

    `top` (item) says whether its top-1 token is a wanted one; `share` (item) is the probability of
    all wanted tokens together.
    """
    hidden = taken[-1]["final"][:, None]
    for norm in parts["norms"]:
        hidden = norm(hidden)
    joined = {}
    for name in ("activation", "control"):
        joined[name] = torch.cat([kept[name] for kept in taken[:-1]])
    tops, shares = [], []
    predict = predictor(parts["head"], parts["squash"])
    # In chunks, since the logits of all items at once would not fit into memory.
    for states in hidden.split(text["chunk"]):
        logits = predict(states)[:, 0]
        wanted = text["wanted"].to(logits.device)
        tops.append((logits.argmax(-1, keepdim=True) == wanted).any(-1).to(logits.dtype))
        shares.append((logits[:, wanted].logsumexp(-1) - logits.logsumexp(-1)).exp())
    joined["top"], joined["share"] = torch.cat(tops), torch.cat(shares)
    return joined


READING = Reading(read_neurons, read_answer, needs=("neurons", "prediction"), final=True)
"""What is read of every window."""


def probe_suffix(
    model: Model,
    weights: ModelSettings | Module,
    settings: SuffixSettings | None = None,
    options: RunOptions | None = None,
) -> xr.Dataset:
    """Probe groups of neurons for a suffix of the next token.

    Parameters
    ----------
    model : Model
        An opened model.
    weights : ModelSettings or Module
        Settings or module that the model was opened from; neurons are chosen by its weights.
    settings : SuffixSettings, optional
        Which suffix is predicted, on which text.
    options : RunOptions, optional
        `out` is the file; activations are kept beside it until they are probed. `state_cap` has
        no influence.

    Returns
    -------
    Dataset
        `single_accuracy` (neuron): accuracy of a probe on one neuron. `accuracy` (kind, size):
        accuracy of a probe on the best `size` neurons of a group, ranked on dev and measured on
        test. `model_accuracy` (reading): accuracy of the model itself. Each comes with the bounds
        of a 95 % bootstrap interval over documents, `_low` and `_high`, and with the items that it
        is computed from. Also `shift` and `effect` of the neurons.

    Raises
    ------
    Refusal
        If no token ends in the suffix, or the corpus has too few that do.
    """
    settings, options = settings or SuffixSettings(), options or RunOptions()
    wanted = _wanted_tokens(model, settings)
    task = make_task(model.tokenizer, wanted, settings)
    if options.foresee is not None:
        # Before weights are read, which may be many gigabytes.
        texts = ShortTexts(task.tokens.tolist())
        left = divide(model, texts, READING, options)
        options.foresee(foresee(model, texts, READING, left, 2 * (NEURONS + 1)))
    opened, moments = _read_weights(weights)
    chosen = choose_neurons(opened, moments, wanted)
    layer, index = chosen["layer"].values, chosen["index"].values
    controls = draw_controls(layer, index, moments.sizes["neuron"], settings.seed)
    rank = np.argsort(layer, kind="stable")
    run = resumable.Run(
        _blank(
            rank,
            len(task.tokens),
            file_attributes(
                {**_describe(model, task, wanted, settings), "gated": int(opened.gated)},
                options.command,
            ),
        ),
        path=options.out,
        fresh=options.fresh,
        complete=lambda dataset, _: fit_groups(
            dataset.sortby("neuron"), task, chosen, settings.seed
        ),
    )
    # On the device once, in the order in which they are captured.
    entries = {
        "activation": torch.from_numpy(index[rank]).to(model.device),
        "control": torch.from_numpy(controls[rank]).to(model.device),
        "of_layer": _of_layer(layer[rank], model.layers),
        "wanted": torch.from_numpy(wanted).to(model.device),
        "chunk": readout.tokens_per_call(model.identity["device"], model.vocabulary),
    }
    texts = ShortTexts(task.tokens.tolist(), settings=entries, fewer="fewer `items`")
    return fill(run, model, texts, READING, options)


def _wanted_tokens(model: Model, settings: SuffixSettings) -> NDArray[np.int64]:
    """Return the ids of the wanted tokens that the model has logits for."""
    if settings.wanted is None:
        tokens = tokens_ending_in(model.tokenizer, settings.suffix)
    else:
        tokens = np.unique(settings.wanted)
    # Tokens that were added to the tokenizer may have no logits.
    tokens = tokens[tokens < model.vocabulary]
    if not len(tokens):
        raise Refusal(f"{model.name} has no logits for the tokens that are wanted")
    return tokens


def _read_weights(weights: ModelSettings | Module) -> tuple[Any, xr.Dataset]:
    """Return the output weights, and the moments of all neurons."""
    if isinstance(weights, Module):
        return open_weights(weights), neurons(weights)
    revision, trusted = weights.revision, weights.trust_remote_code
    moments = neurons(weights.source, revision=revision, trust_remote_code=trusted)
    return open_weights(weights.source, revision, trusted), moments


def _of_layer(layer: NDArray[np.int64], layers: int) -> list[tuple[int, int]]:
    """Return where the neurons of every layer begin and end, in order of their layers."""
    bounds = np.searchsorted(layer, np.arange(layers + 1)).tolist()
    return list(pairwise(bounds))


def _describe(
    model: Model, task: Task, wanted: NDArray[np.int64], settings: SuffixSettings
) -> dict[str, Any]:
    """Return attributes of the file: the model, the text and the tokens."""
    identity = (task.tokens.tolist(), task.part.tolist(), wanted.tolist())
    described = {
        **model.identity,
        "measurement": "suffix",
        "suffix": settings.suffix,
        "corpus": source_name(settings.source),
        "window": WINDOW_TOKENS,
        "bos": "first" if task.tokens.shape[1] > WINDOW_TOKENS else "none",
        "corpus_sha256": value_digest(identity),
        "positives": task.positives,
        "documents": len(np.unique(task.document)),
        "seed": settings.seed,
        "sequences": len(task.tokens),
    }
    for name in SHARES:
        described[f"{name}_items"] = int((task.part == name).sum())
    return described


def _blank(rank: NDArray[np.int64], windows: int, attrs: dict[str, Any]) -> xr.Dataset:
    """Return the empty dataset of activations, with neurons in the order of their layers."""
    of_window = ("window",)
    of_neuron = ("neuron", *of_window)
    variables = {
        "activation": (Metric("activation", "1", "neuron"), of_neuron),
        "control": (Metric("control", "1", "random neuron"), of_neuron),
        "top": (Metric("top", "1", "whether the top-1 token has the suffix"), of_window),
        "share": (Metric("share", "1", "probability of the suffix"), of_window),
    }
    return blank_dataset(variables, {"neuron": rank, "window": np.arange(windows)}, attrs)
