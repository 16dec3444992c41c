"""Metrics of single tokens that are made of final states, of logits, or of other readouts.

The functions are those of `files.metrics.TokenMetric`: the project's own stand below by the name of
their record, and those of a user come along with the queries. The readouts of `readout` are not
among them, since they are made of sums that they share.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustness.trace import numerics, readout

if TYPE_CHECKING:
    from robustness.trace.types import CleanReadout, Readout, TravellingMetric


def evaluate(
    metrics: Sequence[TravellingMetric], hidden: Tensor, clean: CleanReadout, readouts: Readout
) -> Readout:
    """Return metrics of states, by name.

    Parameters
    ----------
    metrics : sequence of tuple
        Name, what is read, and function of every metric.
    hidden : tensor of shape (state, token, width)
        Final states, as the head receives them.
    clean : CleanReadout
        What `readout.reference` returned.
    readouts : dict of str to tensor of shape (state, token)
        What `readout.compare` returned for the states.

    Returns
    -------
    dict of str to tensor of shape (state, token)
        In the type of the other readouts.
    """
    values = _of_logits([each for each in metrics if each[1] == "logits"], hidden, clean)
    for name, reads, function in metrics:
        if reads == "final states":
            device = clean["hidden"].device
            states = numerics.precise(hidden).to(device)
            with numerics.exactly(device):
                values[name] = function(states, numerics.precise(clean["hidden"]))
        elif reads == "readouts":
            values[name] = function(readouts, clean["readout"])
    like = readouts["loss"]
    for name, value in values.items():
        if value.shape != like.shape:
            raise ValueError(f"{name} is of shape {tuple(value.shape)}, not {tuple(like.shape)}")
    return {name: value.to(like) for name, value in values.items()}


def _of_logits(metrics: Sequence[TravellingMetric], hidden: Tensor, clean: CleanReadout) -> Readout:
    """Return metrics that read logits, of which only those of a few tokens exist at once."""
    if not metrics:
        return {}
    states, tokens = hidden.shape[:2]
    at_once = readout.tokens_per_call(hidden.device.type, clean["vocabulary"])
    # The clean logits take as much as those of one state.
    size = max(1, at_once // (states + 1))
    chunks: dict[str, list[Tensor]] = {name: [] for name, _, _ in metrics}
    for first in range(0, tokens, size):
        chosen = slice(first, first + size)
        before = readout.logits_of(clean["hidden"][chosen], clean)
        # A head that is called takes states (token, width).
        rows = readout.logits_of(hidden[:, chosen].flatten(0, 1), clean)
        logits = rows.unflatten(0, (states, len(before)))
        for name, _, function in metrics:
            with numerics.exactly(logits.device):
                chunks[name].append(function(logits, before, clean["targets"][chosen]))
    return {name: torch.cat(values, dim=-1) for name, values in chunks.items()}
