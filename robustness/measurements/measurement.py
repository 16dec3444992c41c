"""The record of a measurement of the clean run, and the built-in measurements."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from robustness.files.metrics import Metric
from robustness.models.block_structure import BlockStructure
from robustness.models.model import Model
from robustness.trace import attention, cka, lens, norms, numerics, similarity
from robustness.trace.types import Captured, TokenFacts

OFFSETS = 32
"""Maximum distance, in tokens, at which attention weights are stored one by one."""

WINDOWS = (1, 2, 4, 5, 8, 16)
"""Numbers of previous tokens over which the attention weight is summed."""

Taken = dict[str, Tensor]


@dataclass(frozen=True)
class Measurement:
    """Captures of a clean run, and their reduction inside the trace.

    `measure` and `finish` run inside the trace, perhaps on a server. They are therefore plain
    functions of tensors that call nothing but torch and `robustness.trace.capture`.
    """

    name: str
    """Name of the measurement and of its file."""
    variables: Mapping[Metric, tuple[str, ...]]
    """Dimensions of every variable by its metric, in the order of the tensors' own dimensions, with
    `sequence` last. Dimensions other than sequence, layer and depth have labels in `coords`."""
    measure: Callable[[Captured, TokenFacts], dict[str, Any]]
    """Function of the captures at a layer and of facts about the text, that returns tensors by
    name. They are stacked over the layers."""
    finish: Callable[..., Taken] | None = None
    """Function of the list of these tensors, the model's parts and the text, for the result."""
    needs: tuple[str, ...] = ()
    """Names of the captures besides the residual stream: see `robustness.trace.types.Captured`.
    With `prediction`, `finish` applies the final norm and the head to residual streams."""
    final: bool = False
    """Whether the last residual stream is measured, too: at depths instead of layers."""
    coords: Callable[[Model, BlockStructure], dict[str, Any]] = lambda model, structure: {}
    """Function of model and structure that returns the labels of further dimensions."""
    grouped: Callable[[Tensor, BlockStructure], NDArray[Any]] | None = None
    """Function that computes a statistic of many sequences together: of the one tensor of these
    sequences, to the values of the one variable, without its last dimension, `batch`."""
    sequential: tuple[str, ...] = ()
    """Names of variables that are undefined if attention and MLP read the same residual stream."""
    complete: Callable[[xr.Dataset], xr.Dataset] = lambda dataset: dataset
    """Function that adds derived variables to a finished dataset."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Entries that are recorded in the file, and that traces find in the text."""
    partly: bool = False
    """Whether it can be taken where some blocks do not have all that it needs: `finish` then puts
    NaN in their place."""
    shortest: int = 3
    """Minimum number of tokens in a sequence."""


def _processing(structure: BlockStructure) -> list[str]:
    # A root-mean-square norm reads the mean over features: centred states would be none of its.
    return ["raw", "centred"] if structure.centres else ["raw"]


def _cumulate(dataset: xr.Dataset) -> xr.Dataset:
    """Add up the attention to the previous 1, 2, 4, … tokens."""
    profile = dataset["profile"]
    windows = [window for window in WINDOWS if window in profile["offset"]]
    sums = []
    for window in windows:
        # From offset 1: a token's attention to itself is at offset 0.
        sums.append(profile.sel(offset=slice(1, window)).sum("offset", skipna=False))
    previous = xr.concat(sums, "window").assign_coords(window=windows)
    attrs = {"units": "1", "long_name": "attention weight on the previous tokens, added up"}
    return dataset.assign(previous=previous.assign_attrs(attrs).astype(profile.dtype))


def _align(dataset: xr.Dataset) -> xr.Dataset:
    """Add CKA and its standard error over batches."""
    value, error = cka.alignment(torch.from_numpy(dataset["hsic"].values))
    dims = dataset["hsic"].dims[:-1]
    named = {"units": "1", "long_name": "centred kernel alignment of the residual streams"}
    erred = {"units": "1", "long_name": "standard error of cka, jackknife over batches"}
    return dataset.assign(
        cka=(dims, value.numpy(), named), cka_standard_error=(dims, error.numpy(), erred)
    )


def _hsic(states: Tensor, structure: BlockStructure) -> NDArray[Any]:
    """Return HSIC terms of a batch, (processing, depth, depth)."""
    raw = numerics.precise(states).transpose(1, 2)
    kinds = [raw, cka.centred(raw)] if structure.centres else [raw]
    return torch.stack(list(map(cka.hsic, kinds))).numpy()


_LENS = ("lens", "depth", "sequence")
_HEADS = ("layer", "head", "sequence")
_NORM = ("processing", "statistic", "sequence")


def local_attention(offsets: int = OFFSETS) -> Measurement:
    """Return the measurement `attention` of distances up to a number of tokens."""
    return Measurement(
        "attention",
        {
            Metric("profile", "1", "mean attention weight on the token so far back"): (
                "layer",
                "head",
                "offset",
                "sequence",
            ),
            Metric("first_token", "1", "mean attention weight on the first token"): _HEADS,
            Metric("entropy", "nat", "mean entropy of the attention weights"): _HEADS,
        },
        attention.profile,
        attention.finish,
        needs=("pattern",),
        partly=True,
        coords=lambda model, structure: {
            "head": np.arange(max(structure.heads)),
            "offset": np.arange(offsets + 1),
        },
        complete=_cumulate,
        settings={"offsets": offsets},
        shortest=offsets + 2,
    )


MEASUREMENTS = {
    measurement.name: measurement
    for measurement in (
        Measurement(
            "lens",
            {
                Metric("kl", "nat", "KL divergence of the lens from the final prediction"): _LENS,
                Metric("kl_reverse", "nat", "KL of the final prediction from the lens"): _LENS,
                Metric("agreement", "1", "share of tokens with the final top-1 prediction"): _LENS,
                Metric("loss", "nat", "cross-entropy of the next token"): _LENS,
                Metric("entropy", "nat", "entropy of the lens's prediction"): _LENS,
                Metric("accuracy", "1", "share of tokens whose top-1 is the next token"): _LENS,
            },
            lens.states,
            lens.read,
            needs=("prediction",),
            final=True,
            coords=lambda model, structure: {"lens": ["recomputed", "frozen"]},
        ),
        Measurement(
            "cka",
            {
                Metric("hsic", "1", "unbiased HSIC of the residual streams at two depths"): (
                    "processing",
                    "depth",
                    "depth_to",
                    "batch",
                )
            },
            cka.last_token,
            final=True,
            coords=lambda model, structure: {
                "processing": _processing(structure),
                "depth_to": np.arange(model.layers + 1),
            },
            grouped=_hsic,
            complete=_align,
        ),
        local_attention(),
        Measurement(
            "norms",
            {
                Metric("residual_norm", "1", "norm of the residual stream"): ("depth", *_NORM),
                Metric("attention_norm", "1", "norm of what attention writes"): ("layer", *_NORM),
                Metric("mlp_norm", "1", "norm of what the MLP writes"): ("layer", *_NORM),
                Metric(
                    "attention_mlp_ratio", "1", "attention_norm over mlp_norm, token by token"
                ): (
                    "layer",
                    *_NORM,
                ),
                Metric(
                    "middle_norm", "1", "norm of the residual stream between attention and MLP"
                ): ("layer", *_NORM),
                Metric("mlp_middle_ratio", "1", "mlp_norm over middle_norm, token by token"): (
                    "layer",
                    *_NORM,
                ),
                Metric("block_influence", "1", "1 - cosine of a block's input and output"): (
                    "layer",
                    "sequence",
                ),
                Metric(
                    "angular_distance", "1", "angle of the last token's states over blocks, / π"
                ): ("layer", "span", "sequence"),
            },
            norms.measure,
            norms.finish,
            needs=("attention", "mlp", "output"),
            final=True,
            sequential=("middle_norm", "mlp_middle_ratio"),
            coords=lambda model, structure: {
                "processing": _processing(structure),
                "statistic": ["mean", "median", "first"],
                "span": np.arange(1, model.layers + 1),
            },
        ),
        Measurement(
            "similarity",
            {
                Metric("cosine", "1", "cosine of what sublayers write, clean and swapped"): (
                    "comparison",
                    "component",
                    "processing",
                    "layer",
                    "sequence",
                )
            },
            similarity.written,
            similarity.compare,
            needs=("attention", "mlp", "context"),
            coords=lambda model, structure: {
                "comparison": list(similarity.COMPARISONS),
                "component": list(similarity.COMPONENTS),
                "processing": _processing(structure),
            },
        ),
    )
}
"""Measurements that `observe` knows by name."""
