"""Final states to readouts, a piece of logits at a time.

A readout says how what a schedule predicts compares with the clean model and with the text. Two
ways lead to it. Where the head's matrix is at hand, its product is taken a strip of the vocabulary
at a time for all tokens, so that each row of the matrix is read once and the logits stay in the
processor's cache. Where the head can only be called (on a server that keeps the weights; where
logits are scaled or capped), it is called for a chunk of tokens at a time. In neither do logits
exist for all tokens and the whole vocabulary at once.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustness.trace import numerics

if TYPE_CHECKING:
    from robustness.trace.types import CleanReadout, Head, Readout

LOGITS_AT_ONCE = {"cpu": 2**20}
"""Number of logits held at once by kind of device: as many as a CPU's cache holds in float32."""

LOGITS_AT_ONCE_ELSEWHERE = 2**26
"""Number of logits held at once on any other device."""

NARROWEST_STRIP = 256
"""Fewest columns of a strip: narrower products waste the processor."""


def reference(
    hidden: Tensor,
    targets: Tensor,
    head: Head,
    vocabulary: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> CleanReadout:
    """Read the clean run's final states, and keep what other schedules are compared with.

    Parameters
    ----------
    hidden : tensor of shape (token, width)
        Final states as the head receives them.
    targets : int64 tensor of shape (token,)
        The tokens that are to be predicted.
    head : callable
        From states (token, width) to logits (token, vocabulary); called where `weight` is None.
    vocabulary : int
        How many logits a token has.
    weight : tensor of shape (vocabulary, width), optional
        The head's matrix, in float32 or float64.
    bias : tensor of shape (vocabulary,), optional
        The head's bias.

    Returns
    -------
    CleanReadout
        What `compare` needs, and `readout`: the clean `loss` and `entropy` in nats and `accuracy`
        per token, with `top`, the most likely token.
    """
    if weight is not None:
        # Of a model over several devices, the last state may be on another than the head.
        hidden = hidden.to(weight.device, weight.dtype)
    targets = targets.to(hidden.device)
    clean: CleanReadout = {
        "hidden": hidden,
        "targets": targets,
        "head": head,
        "vocabulary": vocabulary,
        "weight": weight,
        "bias": bias,
    }
    if weight is None:
        sums, target, _ = _by_calls(hidden[None], clean, ())
    else:
        sums, target, expected = _by_strips(hidden[None], weight, clean, True)
        clean["expected"] = expected[0]
    largest, top, total, weighted = sums
    clean["sums"] = (largest[0], top[0], total[0], weighted[0])
    values = _values(sums, target, targets)
    clean["readout"] = {name: value[0] for name, value in values.items()}
    return clean


def compare(hidden: Tensor, clean: CleanReadout, divergences: Sequence[str] = ("kl",)) -> Readout:
    """Read the final states of schedules on the tokens of the clean run.

    Parameters
    ----------
    hidden : tensor of shape (state, token, width)
        Final states of one or more schedules, as the head receives them.
    clean : CleanReadout
        What `reference` returned.
    divergences : sequence of str
        Which are wanted of `kl`, KL(clean ‖ other), and `kl_reverse`, KL(other ‖ clean). Without
        any, and where the head is called, the clean logits are not computed again.

    Returns
    -------
    dict of str to tensor of shape (state, token)
        `loss`, `entropy` and the divergences in nats; `agreement` and `accuracy`, 0 or 1; `top`,
        the most likely token.
    """
    weight = clean["weight"]
    if weight is None:
        sums, target, diverged = _by_calls(hidden, clean, divergences)
    else:
        hidden = hidden.to(weight.device, weight.dtype)
        sums, target, expected = _by_strips(hidden, weight, clean, "kl_reverse" in divergences)
        difference, before, diverged = clean["hidden"] - hidden, clean["sums"], {}
        if "kl" in divergences:
            diverged["kl"] = numerics.kl_from_states(clean["expected"], difference, sums, before)
        if "kl_reverse" in divergences:
            diverged["kl_reverse"] = numerics.kl_from_states(expected, -difference, before, sums)
    values = {**_values(sums, target, clean["targets"]), **diverged}
    values["agreement"] = (sums[1] == clean["sums"][1]).to(target.dtype)
    return values


def _by_strips(
    hidden: Tensor, weight: Tensor, clean: CleanReadout, expect: bool
) -> tuple[numerics.Sums, Tensor, Tensor]:
    """Sums, target logits and, if asked for, the expected rows of the matrix, strip by strip."""
    bias, targets = clean["bias"], clean["targets"]
    count = hidden.shape[0] * hidden.shape[1]
    together = LOGITS_AT_ONCE.get(hidden.device.type, LOGITS_AT_ONCE_ELSEWHERE)
    width = max(NARROWEST_STRIP, together // count)
    sums = numerics.start(hidden)
    expected = torch.zeros_like(hidden)
    for offset in range(0, len(weight), width):
        strip = weight[offset : offset + width]
        logits = hidden @ strip.T
        if bias is not None:
            logits += bias[offset : offset + width]
        sums, weights, factor = numerics.absorb(sums, logits, offset)
        if expect:
            expected = expected * factor[..., None] + weights @ strip
    target = numerics.dot(hidden, weight[targets])
    if bias is not None:
        target = target + bias[targets]
    return sums, target, expected / sums[2][..., None]


def tokens_per_call(device: str, vocabulary: int) -> int:
    """Return for how many tokens a head that can only be called is called at once."""
    return max(1, LOGITS_AT_ONCE.get(device, LOGITS_AT_ONCE_ELSEWHERE) // vocabulary)


def logits_of(states: Tensor, clean: CleanReadout) -> Tensor:
    """Return the logits (token, vocabulary) of states (token, width), in float32 or wider."""
    weight = clean["weight"]
    if weight is None:
        # A model that is spread over several devices may have its head on another.
        return numerics.precise(clean["head"](states)).to(states.device)
    return torch.nn.functional.linear(states.to(weight), weight, clean["bias"])


def _by_calls(
    hidden: Tensor, clean: CleanReadout, divergences: Sequence[str]
) -> tuple[numerics.Sums, Tensor, dict[str, Tensor]]:
    """Sums, target logits and KL either way, as asked for, chunk of tokens by chunk of tokens."""
    size = tokens_per_call(hidden.device.type, clean["vocabulary"])
    # One tuple of numbers for each state of the first chunk, then of the second, and so on.
    chunks = []
    for first in range(0, hidden.shape[1], size):
        tokens = slice(first, first + size)
        targets = clean["targets"][tokens, None]
        # Without a divergence, the head need not be called on the clean states again.
        before = logits_of(clean["hidden"][tokens], clean) if divergences else hidden
        for state in hidden:
            logits = logits_of(state[tokens], clean)
            target = logits.gather(-1, targets)[..., 0]
            pairs = {"kl": (before, logits), "kl_reverse": (logits, before)}
            diverged = [numerics.kl_from_logits(*pairs[name]) for name in divergences]
            sums, _, _ = numerics.absorb(numerics.start(logits), logits)
            chunks.append((*sums, target, *diverged))
    states = range(hidden.shape[0])
    joined = []
    for column in zip(*chunks):
        # Every n-th of n states' chunks is of the same state.
        of_states = [torch.cat(column[state :: len(states)]) for state in states]
        joined.append(torch.stack(of_states))
    largest, top, total, weighted, target, *rest = joined
    return (largest, top, total, weighted), target, dict(zip(divergences, rest))


def _values(sums: numerics.Sums, target: Tensor, targets: Tensor) -> Readout:
    loss = numerics.log_sum_exp(sums) - target
    return {
        "loss": loss,
        "entropy": numerics.entropy(sums),
        "accuracy": (sums[1] == targets).to(loss.dtype),
        "top": sums[1],
    }
