"""Metrics of a user's own before they are measured: tried out on made-up states, and digested."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from robustness.errors import Refusal, first_line
from robustness.files.metrics import TokenMetric
from robustness.files.provenance import source_digest, value_digest
from robustness.models.model import Model
from robustness.sweeps.settings import SweepSettings
from robustness.trace import readout, token_metrics
from robustness.trace.types import CleanReadout, Readout, TravellingMetric

Given = tuple[Tensor, CleanReadout, Readout]
"""Final states, readout of the clean run, and readouts of the states, as a metric reads them."""

STATES, TOKENS = 2, 3
"""Number of states, and of tokens of each, on which a function is tried out."""


def travelling(metric: TokenMetric) -> TravellingMetric:
    """Return a metric as a trace takes it: its name, what it reads, and its function."""
    function = metric.function or getattr(token_metrics, metric.name)
    return metric.name, metric.reads, function


def try_out(settings: SweepSettings, model: Model) -> None:
    """Refuse metrics of one's own that fail on made-up states, or break a rule of such functions.

    So a mistake is found at once, and without a server.
    """
    if not settings.metrics:
        return

    def head(hidden: Tensor) -> Tensor:
        return torch.sin(hidden.sum(-1, keepdim=True) * torch.arange(model.vocabulary))

    divergences = ("kl",) if "kl" in settings.readouts else ()
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(STATES, TOKENS, model.width, generator=generator)
    targets = torch.arange(TOKENS) % model.vocabulary
    clean_state = torch.randn(TOKENS, model.width, generator=generator)

    def given(tokens: slice) -> Given:
        clean = readout.reference(clean_state[tokens], targets[tokens], head, model.vocabulary)
        hidden = states[:, tokens].clone()
        return hidden, clean, readout.compare(hidden, clean, divergences)

    for metric in settings.metrics:
        try:
            _try_out(metric, given)
        except Exception as error:  # a user's function may raise anything
            raise Refusal(
                f"the function of the metric {metric.name}, which reads {metric.reads}, fails on "
                f"{STATES} states of {TOKENS} tokens: {first_line(error)}"
            ) from error


def _try_out(metric: TokenMetric, given: Callable[[slice], Given]) -> None:
    """Call the function on all tokens and on each alone, and compare its results and arguments."""
    name, reads, function = travelling(metric)

    def watched(*arguments: Any) -> Any:
        before = copy.deepcopy(arguments)
        found = function(*arguments)
        torch.testing.assert_close(
            arguments,
            before,
            rtol=0,
            atol=0,
            equal_nan=True,
            msg="it changes its arguments; copy what is changed",
        )
        return found

    def evaluate(tokens: slice) -> Tensor:
        return token_metrics.evaluate([(name, reads, watched)], *given(tokens))[name]

    whole = evaluate(slice(None))
    alone = [evaluate(slice(token, token + 1)) for token in range(TOKENS)]
    torch.testing.assert_close(
        torch.cat(alone, dim=-1),
        whole,
        rtol=1e-3,
        atol=1e-4,
        equal_nan=True,
        msg="the number of a token is another when the others are left out, or at every call",
    )


def digest(metrics: Sequence[TokenMetric]) -> str | None:
    """Hash metrics and the source of their functions, so that no run of other ones is resumed."""
    if not metrics:
        return None
    records = []
    for metric in metrics:
        source = source_digest([metric.function])
        records.append((*metric.attrs.items(), metric.name, metric.reads, source))
    return value_digest(records)
