"""Metrics of a user's own before they are measured: tried out on made-up states, and digested."""

from collections.abc import Sequence

import torch
from torch import Tensor

from robustness.errors import Refusal, first_line
from robustness.files.metrics import TokenMetric
from robustness.files.provenance import source_digest, value_digest
from robustness.models.model import Model
from robustness.trace import readout, token_metrics
from robustness.trace.types import TravellingMetric

STATES, TOKENS = 2, 3
"""Number of states, and of tokens of each, on which a function is tried out."""


def travelling(metric: TokenMetric) -> TravellingMetric:
    """Return a metric as a trace takes it: its name, what it reads, and its function."""
    function = metric.function or getattr(token_metrics, metric.name)
    return metric.name, metric.reads, function


def try_out(metrics: Sequence[TokenMetric], model: Model) -> None:
    """Refuse metrics whose functions fail on made-up states, or return what they should not.

    So a mistake is found at once, and without a server.
    """
    if not metrics:
        return

    def head(hidden: Tensor) -> Tensor:
        return torch.sin(hidden.sum(-1, keepdim=True) * torch.arange(model.vocabulary))

    generator = torch.Generator().manual_seed(0)
    states = torch.randn(STATES, TOKENS, model.width, generator=generator)
    targets = torch.arange(TOKENS) % model.vocabulary
    clean = readout.reference(states[0], targets, head, model.vocabulary)
    values = readout.compare(states, clean)
    for metric in metrics:
        try:
            token_metrics.evaluate([travelling(metric)], states, clean, values)
        except Exception as error:  # a user's function may raise anything
            raise Refusal(
                f"the function of the metric {metric.name}, which reads {metric.reads}, fails on "
                f"{STATES} states of {TOKENS} tokens: {first_line(error)}"
            ) from error


def digest(metrics: Sequence[TokenMetric]) -> str | None:
    """Hash metrics and the source of their functions, so that no run of other ones is resumed."""
    if not metrics:
        return None
    records = []
    for metric in metrics:
        source = source_digest([metric.function])
        records.append((*metric.attrs.items(), metric.name, metric.reads, source))
    return value_digest(records)
