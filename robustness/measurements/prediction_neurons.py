"""Prediction and suppression neurons: how MLP neurons write to the vocabulary, from weights alone.

A neuron i writes its output vector w_i to the residual stream. Its cosines with the unembedding
vectors of all tokens have moments (Gurnee et al. 2024): a few tokens far above the rest give high
kurtosis and positive skew, a *prediction* neuron; far below, negative skew, a *suppression* neuron;
two broad groups of tokens give high variance, a *partition* neuron.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.nn import Module

from robustness.errors import Refusal
from robustness.files import resumable
from robustness.files.labels import blank_dataset, layer_coords
from robustness.files.metrics import Metric
from robustness.files.provenance import file_attributes
from robustness.models.output_weights import Weights, open_weights
from robustness.models.weight_processing import (
    centre_reading,
    centre_unembedding,
    centre_writing,
    fold_norm,
)
from robustness.runs.settings import RunOptions

KURTOSIS = 10.0
"""Kurtosis above which a neuron is a prediction or a suppression neuron."""

VARIANCE = 0.005
"""Variance above which a neuron is a partition neuron."""

CLASSES = ("prediction", "suppression", "partition")
"""Classes of neurons; the first two exclude each other."""

COSINES_AT_ONCE = 1 << 18
"""Number of cosines that are computed together: as many as stay in a processor's cache."""

MOMENTS = (
    Metric("cosine_mean", "1", "mean over tokens of the cosine with the unembedding"),
    Metric("cosine_variance", "1", "variance over tokens of the cosine"),
    Metric("cosine_skewness", "1", "skewness over tokens of the cosine"),
    Metric("cosine_kurtosis", "1", "kurtosis over tokens of the cosine, 3 for a normal one"),
)


@dataclass(frozen=True)
class NeuronSettings:
    """Settings of the measurement of neurons."""

    real_vocabulary: bool = False
    """Whether rows that pad the unembedding, and belong to no token, are left out."""
    kurtosis: float = KURTOSIS
    """Kurtosis above which a neuron is a prediction or a suppression neuron."""
    variance: float = VARIANCE
    """Variance above which a neuron is a partition neuron."""


def neurons(
    source: str | Path | Module,
    settings: NeuronSettings | None = None,
    options: RunOptions | None = None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> xr.Dataset:
    """Measure how every MLP neuron writes to the vocabulary.

    Only the unembedding, the final norm and the MLPs' output matrices are read; the model is not
    loaded. The norm is folded into the unembedding, which is then centred. With a layer norm, the
    matrices that read and write the residual stream are centred, too.

    Parameters
    ----------
    source : str, path or Module
        As `open_model` takes it.
    settings : NeuronSettings, optional
        Which rows of the unembedding count, and the thresholds of the classes.
    options : RunOptions, optional
        `out` is the file. `progress` is called with the number of layers that are done.
    revision : str, optional
        Branch, tag or commit on the hub.
    trust_remote_code : bool
        Whether code that comes with a checkpoint may be run.

    Returns
    -------
    Dataset
        `cosine_mean`, `cosine_variance`, `cosine_skewness`, `cosine_kurtosis` (layer, neuron), NaN
        for a neuron whose output vector is 0, and `share` (neuron_class, layer). In gated MLPs the
        activation has no fixed sign, and skew does not tell prediction from suppression; the
        attribute `gated` is then 1.

    Raises
    ------
    Refusal
        If there is no such model, its parts are not found, or `out` holds another measurement.
    """
    settings, options = settings or NeuronSettings(), options or RunOptions()
    weights = open_weights(source, revision, trust_remote_code)
    rows = weights.tokens if settings.real_vocabulary else None
    if settings.real_vocabulary and rows is None:
        raise Refusal(f"{weights.identity['model']} has no tokenizer to tell which tokens are real")
    with resumable.Run(
        _blank(weights, settings, options.command),
        path=options.out,
        fresh=options.fresh,
        complete=lambda dataset, _: _with_shares(dataset, settings),
    ) as run:
        unembedding = _unit(processed_unembedding(weights, rows))
        for layer in range(run.done, weights.layers):
            options.show(layer, weights.layers)
            measured = moments(_unit(processed_output(weights, layer)), unembedding).numpy()
            values = {}
            for metric, moment in zip(MOMENTS, measured, strict=True):
                values[metric.name] = moment[:, None]
            run.add(slice(layer, layer + 1), values)
        options.show(weights.layers, weights.layers)
        return run.finish()


def _blank(weights: Weights, settings: NeuronSettings, command: str) -> xr.Dataset:
    """Return the empty dataset, which is filled layer by layer."""
    described: dict[str, Any] = {
        **weights.identity,
        "measurement": "neurons",
        "processing": "folded, centred" if weights.centres else "folded, unembedding centred",
        "vocabulary": (
            "real tokens" if settings.real_vocabulary else "all rows of the unembedding"
        ),
        "gated": int(weights.gated),
        "kurtosis_threshold": settings.kurtosis,
        "variance_threshold": settings.variance,
        "sequences": weights.layers,
    }
    coords = {**layer_coords(weights.layers), "neuron": np.arange(weights.neurons)}
    variables = {metric.name: (metric, ("neuron", "layer")) for metric in MOMENTS}
    return blank_dataset(variables, coords, file_attributes(described, command), np.float64)


def _with_shares(dataset: xr.Dataset, settings: NeuronSettings) -> xr.Dataset:
    """Add the share of neurons of every class."""
    members = classify(dataset, kurtosis=settings.kurtosis, variance=settings.variance)
    attrs = {"units": "1", "long_name": "share of neurons"}
    complete = dataset.assign(share=members.mean("neuron").assign_attrs(attrs))
    return complete.transpose(..., "layer", "neuron")


def processed_output(weights: Weights, layer: int) -> Tensor:
    """Return output vectors of a layer's neurons, (neuron, width), centred if the norm centres."""
    written = weights.down(layer)
    return centre_writing(written.T)[0].T if weights.centres else written


def processed_unembedding(weights: Weights, rows: int | None = None) -> Tensor:
    """Return the first rows of the unembedding, with the final norm folded in, and centred."""
    matrix = weights.unembedding[:rows]
    if weights.gain is not None:
        matrix, _ = fold_norm(matrix, None, weights.gain, None)
    if weights.centres:
        matrix = centre_reading(matrix)
    return centre_unembedding(matrix)[0]


def moments(written: Tensor, unembedding: Tensor) -> Tensor:
    """Return mean, variance, skewness and kurtosis of cosines, float64 of shape (moment, neuron).

    Cosines are computed in float32 and their powers are added up in float64, for a strip of the
    vocabulary at a time.

    Parameters
    ----------
    written : tensor of shape (neuron, width)
        Unit vectors.
    unembedding : tensor of shape (token, width)
        Unit vectors; rows that are NaN (tokens with no vector) are left out.
    """
    unembedding = unembedding[~unembedding.isnan().any(1)]
    # Sums of powers, which one pass over strips can take. Central moments are small differences of
    # them, which takes float64.
    sums = torch.zeros(4, len(written), dtype=torch.float64)
    strip = max(1, COSINES_AT_ONCE // len(written))
    for rows in unembedding.split(strip):
        cosines = (written @ rows.T).double()
        squares = cosines.square()
        sums[0] += cosines.sum(1)
        sums[1] += squares.sum(1)
        sums[2] += torch.linalg.vecdot(squares, cosines)
        sums[3] += torch.linalg.vecdot(squares, squares)
    mean, second, third, fourth = sums / len(unembedding)
    variance = second - mean**2
    skewness = (third - 3 * mean * second + 2 * mean**3) / variance**1.5
    kurtosis = (fourth - 4 * mean * third + 6 * mean**2 * second - 3 * mean**4) / variance**2
    return torch.stack([mean, variance, skewness, kurtosis])


def classify(
    dataset: xr.Dataset, *, kurtosis: float = KURTOSIS, variance: float = VARIANCE
) -> xr.DataArray:
    """Return whether each neuron is of each class, bool (neuron_class, layer, neuron).

    Prediction: kurtosis above its threshold and skew above 0. Suppression: kurtosis above its
    threshold and skew below 0. Partition: variance above its threshold.
    """
    heavy = dataset["cosine_kurtosis"] > kurtosis
    skew = dataset["cosine_skewness"]
    members = [heavy & (skew > 0), heavy & (skew < 0), dataset["cosine_variance"] > variance]
    return xr.concat(members, "neuron_class").assign_coords(neuron_class=list(CLASSES))


def _unit(vectors: Tensor) -> Tensor:
    """Return vectors divided by their norms; NaN where a norm is 0."""
    norms = vectors.norm(dim=1, keepdim=True)
    return vectors / norms.where(norms > 0, torch.nan)
