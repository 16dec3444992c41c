"""Published quantities, computed from a model's files by layer, depth or neuron."""

from math import log

import numpy as np
import xarray as xr

from recipes.evidence.files import Files, best_head
from recipes.recipe import ATTENTION, LENS, NEURONS, SUBJOINER, SUFFIX, WIC


def local_attention(files: Files) -> dict[str, float]:
    """Mean attention weight on one of the five previous tokens, over heads, by layer."""
    values = files[ATTENTION]["previous"].sel(window=5).mean(("head", "sequence")) / 5
    return _by_place(values)


def lens_entropy(lens: str, files: Files) -> dict[str, float]:
    """Entropy of a lens in bits, by depth."""
    # Published in bits; files are in nats.
    values = files[LENS]["entropy"].sel(lens=lens).mean("sequence") / log(2)
    return _by_place(values)


def neuron_count(name: str, files: Files) -> dict[str, float]:
    """Number of neurons of a class, by layer."""
    dataset = files[NEURONS]
    values = dataset["share"].sel(neuron_class=name) * dataset.sizes["neuron"]
    return _by_place(values)


def neurons_above_kurtosis(files: Files) -> dict[str, float]:
    """Number of neurons with a kurtosis above 10."""
    dataset = files[NEURONS]
    return {"all": float((dataset["cosine_kurtosis"] > 10).sum())}


def moments(name: str, files: Files) -> dict[str, float]:
    """Moment of the cosines with the vocabulary, by layer.neuron."""
    values = files[NEURONS][f"cosine_{name}"].values
    moments_by_place = {}
    for (layer, neuron), value in np.ndenumerate(values):
        moments_by_place[f"{layer}.{neuron}"] = float(value)
    return moments_by_place


def suffix_ranks(files: Files) -> dict[str, float]:
    """Rank of the suffix neurons, from 1, by layer.neuron."""
    dataset = files[SUFFIX]
    ranks = {}
    # The file lists neurons in the order of their ranks.
    pairs = zip(dataset["layer"].values, dataset["index"].values, strict=True)
    for rank, (layer, index) in enumerate(pairs, 1):
        ranks[f"{layer}.{index}"] = float(rank)
    return ranks


def neurons_raising_suffix(files: Files) -> dict[str, float]:
    """Number of suffix neurons that raise the suffix."""
    return {"all": float((files[SUFFIX]["shift"] > 0).sum())}


def best_subjoiner_head(files: Files) -> dict[str, float]:
    """Layer and index of the best subjoiner head."""
    layer, head = best_head(files[SUBJOINER])
    return {"layer": float(layer), "head": float(head)}


def threshold_accuracy(files: Files) -> dict[str, float]:
    """Word-in-context accuracy of a threshold on the cosine, by depth."""
    values = files[WIC]["accuracy"].sel(probe="threshold")
    return _by_place(values)


def _by_place(values: xr.DataArray) -> dict[str, float]:
    return {str(place): float(value) for place, value in enumerate(values)}
