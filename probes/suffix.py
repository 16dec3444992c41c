"""Whether the next token ends in a suffix, told from groups of prediction and suppression neurons.

A window of 24 tokens either ends in a token with the suffix or does not, equally often; a probe
sees activations of MLP neurons at the token before it. If groups of neurons tell more than any one,
and neurons that lower the logits of the suffix as much as those that raise them, predictions are
made by an ensemble.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from probes.classifier import Floats, Probe, Split, fit_all, labelled, threshold
from probes.windows import ITEMS, LENGTH, SHARES, Task, make_task, tokens_ending_in
from robustness.errors import Refusal
from robustness.files import resumable
from robustness.files.labels import blank_dataset
from robustness.files.metrics import Metric
from robustness.files.provenance import file_attributes, value_digest
from robustness.measurements.clean_pass import Reading
from robustness.measurements.prediction_neurons import (
    KURTOSIS,
    VARIANCE,
    neurons,
    processed_unembedding,
)
from robustness.measurements.short_texts import ShortTexts, fill
from robustness.models.model import Model
from robustness.models.output_weights import Weights, open_weights
from robustness.models.weight_processing import centre_writing
from robustness.runs.settings import RunOptions
from robustness.text.corpus import source_name
from robustness.trace import numerics, readout
from robustness.trace.unembedding import predictor

NEURONS = 32
"""Neurons that are probed."""

KINDS = ("mixed", "prediction", "suppression", "random", "shuffled")
"""Groups: the chosen neurons together; those that raise the suffix's logits; those that lower them;
random neurons of the same layers; the chosen ones with shuffled labels."""

READINGS = ("hard", "half", "tuned")
"""The model's own answer: its top-1 token has the suffix; the suffix has more than half of the
probability; more than a share that is best on dev."""

BINS = 40


def choose_neurons(
    weights: Weights, moments: xr.Dataset, wanted: NDArray[np.int64], count: int = NEURONS
) -> xr.Dataset:
    """Choose the neurons that move the logits of some tokens most against those of all others.

    Among neurons of high kurtosis or variance (or all, if there are none), by the absolute
    difference of the mean of W_U · w_out over the tokens and over the rest.

    Parameters
    ----------
    weights : Weights
        The weights that write to the vocabulary.
    moments : Dataset
        As `robustness.measurements.prediction_neurons.neurons` returns.
    wanted : array of int
        The tokens.
    count : int
        How many neurons.

    Returns
    -------
    Dataset
        `shift` (neuron), positive for neurons that raise the tokens' logits, in order of its size;
        `effect` (neuron, tokens, bin), the shares of W_U · w_out in `bin`, for the tokens `with`
        the suffix and those `without`; `layer` and `index` of each neuron.
    """
    # Rows that pad the vocabulary are no tokens.
    unembedding = processed_unembedding(weights, weights.tokens)
    with_suffix = torch.zeros(len(unembedding), dtype=torch.bool)
    with_suffix[torch.from_numpy(wanted)] = True
    direction = unembedding[with_suffix].mean(0) - unembedding[~with_suffix].mean(0)
    heavy = (moments["cosine_kurtosis"] > KURTOSIS) | (moments["cosine_variance"] > VARIANCE)
    candidates = heavy.values if heavy.any() else np.ones(heavy.shape, bool)
    shifts = np.full(candidates.shape, 0.0)
    for layer in range(weights.layers):
        shifts[layer] = (_written(weights, layer) @ direction).numpy()
    shifts[~candidates] = 0
    order: NDArray[np.int64] = np.argsort(-np.abs(shifts).ravel(), kind="stable")
    layers, indices = np.divmod(order[: min(count, int(candidates.sum()))], shifts.shape[1])
    effects = torch.stack(
        [
            _written(weights, at)[which]
            for at, which in zip(layers.tolist(), indices.tolist(), strict=True)
        ]
    )
    logits = (effects @ unembedding.T).numpy()
    edges = np.linspace(logits.min(), logits.max(), BINS + 1)
    mask = with_suffix.numpy()
    histogram = np.array(
        [
            [np.histogram(row[chosen], edges)[0] / chosen.sum() for chosen in (mask, ~mask)]
            for row in logits
        ]
    )
    return xr.Dataset(
        {
            "shift": ("neuron", shifts[layers, indices], _share("mean logit shift of the tokens")),
            "effect": (
                ("neuron", "tokens", "bin"),
                histogram,
                _share("share of tokens by W_U · w_out"),
            ),
        },
        coords={
            "neuron": np.arange(len(layers)),
            "layer": ("neuron", layers),
            "index": ("neuron", indices),
            "tokens": ["with", "without"],
            "bin": (edges[:-1] + edges[1:]) / 2,
        },
    )


def _written(weights: Weights, layer: int) -> Tensor:
    """What a layer's neurons write (neuron, width), as the processed weights say."""
    written = weights.down(layer)
    return centre_writing(written.T)[0].T if weights.centres else written


def _share(name: str) -> dict[str, str]:
    return {"units": "1", "long_name": name}


def read_neurons(captured: dict[str, Any], text: dict[str, Any]) -> dict[str, Tensor]:
    """Activations at the last token but one, (neuron, item), of chosen and of random neurons."""
    place = torch.arange(len(text["lengths"]), device=text["lengths"].device), text["lengths"] - 2
    if "layer" not in captured:
        return {"final": captured["residual"][place]}
    activations = numerics.precise(captured["neurons"][place]).T
    layer = captured["layer"]
    return {name: activations[text[name][layer]] for name in ("activation", "control")}


def read_answer(
    taken: Sequence[dict[str, Tensor]], parts: dict[str, Any], text: dict[str, Any]
) -> dict[str, Tensor]:
    """Join the layers, and add what the model itself predicts (item).

    `top`, whether its top-1 token is one of those that are wanted, and `share`, the probability of
    all of these together.
    """
    hidden = taken[-1]["final"][:, None]
    for norm in parts["norms"]:
        hidden = norm(hidden)
    names = ("activation", "control")
    found = {name: torch.cat([kept[name] for kept in taken[:-1]]) for name in names}
    tops, shares = [], []
    predict = predictor(parts["head"], parts["squash"])
    for part in hidden.split(text["chunk"]):
        logits = predict(part)[:, 0]
        wanted = text["wanted"].to(logits.device)
        tops.append((logits.argmax(-1, keepdim=True) == wanted).any(-1).to(logits.dtype))
        shares.append((logits[:, wanted].logsumexp(-1) - logits.logsumexp(-1)).exp())
    found["top"], found["share"] = torch.cat(tops), torch.cat(shares)
    return found


def _controls(
    layer: NDArray[np.int64], index: NDArray[np.int64], count: int, seed: int
) -> NDArray[np.int64]:
    """Draw as many other neurons of the same layers, each at most once."""
    random = np.random.default_rng(seed)
    found = np.zeros_like(index)
    for at in np.unique(layer):
        others = np.setdiff1d(np.arange(count), index[layer == at])
        wanted = int((layer == at).sum())
        found[layer == at] = random.choice(others, wanted, replace=len(others) < wanted)
    return found


def probe_suffix(
    model: Model,
    source: str | Path,
    weights_of: Any,
    suffix: str = "ing",
    *,
    wanted: Sequence[int] | None = None,
    items: int = ITEMS,
    seed: int = 0,
    field: str = "text",
    split: str = "train",
    revision: str | None = None,
    trust_remote_code: bool = False,
    batch_tokens: int | None = None,
    out: str | Path | None = None,
    fresh: bool = False,
    command: str = "",
    progress: Callable[[int, int], object] | None = None,
    tell: Callable[[str], object] = lambda text: None,
) -> xr.Dataset:
    """Probe groups of neurons for whether the next token ends in a suffix.

    Parameters
    ----------
    model : Model
        An opened model.
    source, field, split
        The corpus, as `robustness.text.corpus.documents` takes it.
    weights_of : str, path or Module
        What the model was opened from.
    suffix : str
        What the tokens end in.
    wanted : sequence of int, optional
        A set of tokens instead of those that end in the suffix, which then is its name.
    items : int
        The most windows.
    seed : int
        Of the windows, the random neurons, the shuffled labels and the bootstrap.
    revision, trust_remote_code
        As for `open_model`.
    batch_tokens, out, fresh, command, progress, tell
        As for `robustness.measurements.observation.observe`, with one file.

    Returns
    -------
    Dataset
        `single_accuracy` (neuron) and `accuracy` (kind, size), of probes on one neuron and on the
        best `size` of a group, ranked on dev and measured on test, and `model_accuracy` (reading),
        each with `_low` and `_high`, a 95 % bootstrap interval over documents, and the items behind
        it; `shift` and `effect` of the neurons.

    Raises
    ------
    Refusal
        If no token ends in the suffix, or the corpus has too few that do.
    """
    tokens = tokens_ending_in(model.tokenizer, suffix) if wanted is None else np.unique(wanted)
    tokens = tokens[tokens < model.vocabulary]
    if not len(tokens):
        raise Refusal(f"{model.name} has no logits for the tokens that are wanted")
    task = make_task(
        source, model.tokenizer, tokens, items=items, seed=seed, field=field, split=split
    )
    weights = open_weights(weights_of, revision, trust_remote_code)
    moments = neurons(weights_of, revision=revision, trust_remote_code=trust_remote_code)
    chosen = choose_neurons(weights, moments, tokens)
    layer, index = chosen["layer"].values, chosen["index"].values
    controls = _controls(layer, index, moments.sizes["neuron"], seed)
    # Captured layer by layer; `rank` says which of the neurons comes when.
    rank = np.argsort(layer, kind="stable")
    lists = {
        name: [torch.from_numpy(which[rank][layer[rank] == at]) for at in range(model.layers)]
        for name, which in (("activation", index), ("control", controls))
    }
    settings = {
        **model.identity,
        "measurement": "suffix",
        "suffix": suffix,
        "corpus": source_name(source),
        "gated": int(weights.gated),
        "window": LENGTH,
        "bos": "first" if task.tokens.shape[1] > LENGTH else "none",
        "corpus_sha256": value_digest((task.tokens.tolist(), task.part.tolist(), tokens.tolist())),
        "positives": task.positives,
        "documents": len(np.unique(task.document)),
        "seed": seed,
        "sequences": len(task.tokens),
        **{f"{name}_items": int((task.part == name).sum()) for name in SHARES},
    }
    items_of = ("window",)
    run = resumable.Run(
        blank_dataset(
            {
                "activation": (Metric("activation", "1", "neuron"), ("neuron", *items_of)),
                "control": (Metric("control", "1", "random neuron"), ("neuron", *items_of)),
                "top": (Metric("top", "1", "whether the top-1 token has the suffix"), items_of),
                "share": (Metric("share", "1", "probability of the suffix"), items_of),
            },
            {"neuron": rank, "window": np.arange(len(task.tokens))},
            file_attributes(settings, command),
        ),
        path=None if out is None else Path(out),
        fresh=fresh,
        complete=lambda dataset, _: _probe_all(dataset.sortby("neuron"), task, chosen, seed),
    )
    return fill(
        run,
        model,
        ShortTexts(
            task.tokens.tolist(),
            settings={
                **lists,
                "wanted": torch.from_numpy(tokens),
                "chunk": readout.chunk(model.identity["device"], model.vocabulary),
            },
            fewer="fewer `items`",
        ),
        Reading(read_neurons, read_answer, needs=("neurons", "prediction"), final=True),
        RunOptions(batch_tokens=batch_tokens, progress=progress, tell=tell),
    )


def _probe_all(dataset: xr.Dataset, task: Task, chosen: xr.Dataset, seed: int) -> xr.Dataset:
    """Fit probes on single neurons and on groups of every kind, ranked on dev."""
    own = _split(dataset["activation"].values.T, task)
    splits = dict.fromkeys(KINDS, own)
    splits["random"] = _split(dataset["control"].values.T, task)
    splits["shuffled"] = own.shuffled(seed)
    count, shift = chosen.sizes["neuron"], chosen["shift"].values
    members = {kind: list(range(count)) for kind in KINDS}
    members["prediction"] = np.flatnonzero(shift > 0).tolist()
    members["suppression"] = np.flatnonzero(shift < 0).tolist()
    test = task.part == "test"
    cluster = task.document[test]
    groups, single = [], xr.Dataset()
    for kind in KINDS:
        split, inside = splits[kind], members[kind]
        if not inside:
            continue
        alone = fit_all([partial(split.only, [at]) for at in inside])
        ranked = [
            inside[at] for at in np.argsort([-probe.dev_accuracy for probe in alone], kind="stable")
        ]
        sizes = range(1, len(ranked) + 1)
        probes = fit_all([partial(split.only, ranked[:size]) for size in sizes])
        found = labelled(probes, "size", cluster, seed).assign_coords(size=list(sizes))
        groups.append(found.expand_dims(kind=[kind]))
        if kind == "mixed":
            single = labelled(alone, "neuron", cluster, seed)
    answers = labelled(_answers(dataset, task), "reading", cluster, seed)
    fill = {name: np.int8(-1) if name == "correct" else np.nan for name in groups[0].data_vars}
    together = xr.concat(groups, "kind", join="outer", fill_value=fill)
    return (
        xr.merge(
            [
                together,
                single.rename({name: f"single_{name}" for name in single.data_vars}),
                answers.rename({name: f"model_{name}" for name in answers.data_vars}),
                chosen,
            ]
        )
        .assign_coords(
            reading=list(READINGS),
            item=np.arange(test.sum()),
            label=("item", task.label[test].astype(np.int8)),
            document=("item", cluster),
        )
        .assign_attrs(dataset.attrs)
    )


def _answers(dataset: xr.Dataset, task: Task) -> list[Probe]:
    """Return the model's own answers, read in every way of `READINGS`."""
    top = _split(dataset["top"].values[:, None], task)
    share = _split(dataset["share"].values[:, None], task)
    grid = np.unique(np.quantile(share.dev[0], np.linspace(0, 1, 101))).tolist()
    return [
        threshold(top, (0.5,)),
        threshold(share, (0.5,)),
        threshold(share, grid),
    ]


def _split(features: Floats, task: Task) -> Split:
    train, dev, test = (
        (features[task.part == name], task.label[task.part == name]) for name in SHARES
    )
    return Split(train, dev, test)
