"""Neurons that move the logits of some tokens most, and random neurons to compare them with."""

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from robustness.measurements.prediction_neurons import (
    KURTOSIS,
    VARIANCE,
    processed_output,
    processed_unembedding,
)
from robustness.models.output_weights import Weights

NEURONS = 32
"""Number of neurons that are chosen."""

EFFECT_BINS = 40
"""Number of bins of the histograms of logit effects."""


def choose_neurons(
    weights: Weights, moments: xr.Dataset, wanted: NDArray[np.int64], count: int = NEURONS
) -> xr.Dataset:
    """Choose the neurons that move the logits of some tokens most, relative to all other tokens.

    Candidates are neurons of high kurtosis or variance, or all neurons if there are none. They are
    ranked by the absolute difference between the means of W_U · w_out over the tokens and over all
    others.

    Parameters
    ----------
    weights : Weights
        The output weights of the model.
    moments : Dataset
        Result of `robustness.measurements.neurons`.
    wanted : array of int
        Ids of the tokens.
    count : int
        Maximum number of neurons.

    Returns
    -------
    Dataset
        `shift` (neuron), positive for neurons that raise the tokens' logits, in order of absolute
        value; `effect` (neuron, tokens, bin), the share of tokens by W_U · w_out, for tokens `with`
        the suffix and `without`; `layer` and `index` of each neuron.
    """
    # Rows that pad the vocabulary are no tokens.
    unembedding = processed_unembedding(weights, weights.tokens)
    is_wanted = torch.zeros(len(unembedding), dtype=torch.bool)
    is_wanted[torch.from_numpy(wanted)] = True
    # A difference of means is linear: one product with this direction gives it for every neuron.
    direction = unembedding[is_wanted].mean(0) - unembedding[~is_wanted].mean(0)
    candidates = _candidates(moments)
    shifts = np.full(candidates.shape, 0.0)
    for layer in range(weights.layers):
        shifts[layer] = (processed_output(weights, layer) @ direction).numpy()
    shifts[~candidates] = 0
    order: NDArray[np.int64] = np.argsort(-np.abs(shifts).ravel(), kind="stable")
    layers, indices = np.divmod(order[: min(count, int(candidates.sum()))], weights.neurons)
    written = []
    for layer, index in zip(layers.tolist(), indices.tolist(), strict=True):
        written.append(processed_output(weights, layer)[index])
    logits = (torch.stack(written) @ unembedding.T).numpy()
    edges = np.linspace(logits.min(), logits.max(), EFFECT_BINS + 1)
    return xr.Dataset(
        {
            "shift": ("neuron", shifts[layers, indices], _share("mean logit shift of the tokens")),
            "effect": (
                ("neuron", "tokens", "bin"),
                _histograms(logits, is_wanted, edges),
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


def draw_controls(
    layer: NDArray[np.int64], index: NDArray[np.int64], count: int, seed: int
) -> NDArray[np.int64]:
    """Draw the same number of other neurons from the same layers, each at most once if possible.

    Parameters
    ----------
    layer, index : array of int of shape (neuron,)
        Layer of each chosen neuron, and its index in the layer.
    count : int
        Number of neurons in a layer.
    seed : int
        Seed of the draw.

    Returns
    -------
    int64 array of shape (neuron,)
        Index of a control in the layer of every chosen neuron.
    """
    random = np.random.default_rng(seed)
    controls = np.zeros_like(index)
    for at in np.unique(layer):
        others = np.setdiff1d(np.arange(count), index[layer == at])
        number = int((layer == at).sum())
        controls[layer == at] = random.choice(others, number, replace=len(others) < number)
    return controls


def _candidates(moments: xr.Dataset) -> NDArray[np.bool_]:
    """Return the neurons of high kurtosis or variance, bool (layer, neuron); all if none is."""
    heavy = (moments["cosine_kurtosis"] > KURTOSIS) | (moments["cosine_variance"] > VARIANCE)
    candidates: NDArray[np.bool_] = heavy.values
    return candidates if candidates.any() else np.ones(heavy.shape, bool)


def _histograms(
    logits: NDArray[np.float32], is_wanted: Tensor, edges: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return shares of tokens by logit, (neuron, 2, bin), for wanted tokens and for all others."""
    mask = is_wanted.numpy()
    shares = []
    for row in logits:
        for tokens in (mask, ~mask):
            shares.append(np.histogram(row[tokens], edges)[0] / tokens.sum())
    return np.array(shares).reshape(len(logits), 2, -1)


def _share(name: str) -> dict[str, str]:
    return {"units": "1", "long_name": name}
