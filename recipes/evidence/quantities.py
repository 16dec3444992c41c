"""Quantities that were published, as a model's files have them: each by layer, depth or neuron."""

from math import log

import numpy as np
import xarray as xr

from recipes.evidence.files import Files, best_head
from recipes.recipe import ATTENTION, LENS, NEURONS, SUBJOINER, SUFFIX, WIC


def local_attention(files: Files) -> dict[str, float]:
    """Attention weight on one of the five tokens before, mean over heads, by layer."""
    values = files[ATTENTION]["previous"].sel(window=5).mean(("head", "sequence")) / 5
    return _by_place(values)


def lens_entropy(lens: str, files: Files) -> dict[str, float]:
    """Entropy of a lens in bits, by depth."""
    values = files[LENS]["entropy"].sel(lens=lens).mean("sequence") / log(2)
    return _by_place(values)


def neuron_count(name: str, files: Files) -> dict[str, float]:
    """Number of neurons of a class, by layer."""
    dataset = files[NEURONS]
    values = dataset["share"].sel(neuron_class=name) * dataset.sizes["neuron"]
    return _by_place(values)


def neurons_above_kurtosis(files: Files) -> dict[str, float]:
    """Number of neurons of kurtosis above 10."""
    dataset = files[NEURONS]
    return {"all": float((dataset["cosine_kurtosis"] > 10).sum())}


def moments(name: str, files: Files) -> dict[str, float]:
    """A moment of the cosines with the vocabulary, by layer.neuron."""
    values = files[NEURONS][f"cosine_{name}"].values
    places = np.ndindex(values.shape)
    return {f"{layer}.{neuron}": float(values[layer, neuron]) for layer, neuron in places}


def suffix_ranks(files: Files) -> dict[str, float]:
    """Rank of the neurons for a suffix from 1, by layer.neuron."""
    dataset = files[SUFFIX]
    pairs = zip(dataset["layer"].values, dataset["index"].values, strict=True)
    return {f"{layer}.{index}": rank + 1.0 for rank, (layer, index) in enumerate(pairs)}


def neurons_raising_suffix(files: Files) -> dict[str, float]:
    """Number of the neurons for a suffix that raise it."""
    return {"all": float((files[SUFFIX]["shift"] > 0).sum())}


def best_subjoiner_head(files: Files) -> dict[str, float]:
    """Layer and index of the best subjoiner head."""
    layer, head = best_head(files[SUBJOINER])
    return {"layer": float(layer), "head": float(head)}


def threshold_accuracy(files: Files) -> dict[str, float]:
    """Accuracy of word in context by a threshold on the cosine, by depth."""
    values = files[WIC]["accuracy"].sel(probe="threshold")
    return _by_place(values)


def _by_place(values: xr.DataArray) -> dict[str, float]:
    return {str(place): float(value) for place, value in enumerate(values)}
