"""The clean pass of methods that measure no schedule: how far blocks turn the stream."""

import numpy as np
import xarray as xr

from robustness.files.metrics import Metric
from robustness.measurements.measurement import Measurement
from robustness.measurements.observation import observe
from robustness.models.model import Model
from robustness.runs.settings import RunOptions
from robustness.text.corpus import Corpus
from robustness.trace import redundancy

REDUNDANCY = Measurement(
    "redundancy",
    {
        Metric("block_influence", "1", "1 - cosine of a block's input and output"): (
            "layer",
            "sequence",
        ),
        Metric("angular_distance", "1", "angle of the last token's states over blocks, / π"): (
            "layer",
            "span",
            "sequence",
        ),
    },
    redundancy.measure,
    redundancy.finish,
    needs=("output",),
    final=True,
    coords=lambda model, structure: {"span": np.arange(1, model.layers + 1)},
)
"""Measurement of blocks and spans by what they do to the residual stream."""


def measure_redundancy(model: Model, corpus: Corpus, options: RunOptions) -> xr.Dataset:
    """Return `block_influence` (layer, sequence) and `angular_distance` (layer, span, sequence)."""
    return observe(model, corpus, [REDUNDANCY], options)["redundancy"]
