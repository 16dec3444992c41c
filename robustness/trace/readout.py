"""Final states to readouts, a piece of logits at a time.

A readout says how what a schedule predicts compares with the clean model and with the text. Three
ways lead to it. Of a centred copy of the head's matrix, products are taken a strip of the
vocabulary at a time, and KL follows from final states (below). Of the head's own matrix, clean and
other logits are computed together, a strip at a time (`paired`). A head that is no matrix, or that
can only be called, is called for a chunk of tokens at a time. In none do logits exist for all
tokens and the whole vocabulary at once.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustness.trace import numerics, paired, products, unembedding

if TYPE_CHECKING:
    from robustness.trace.types import CleanReadout, Head, Matrix, Readout

LOGITS_AT_ONCE = {"cpu": 2**20, "cuda": 2**24}
"""Number of logits of a called head that are held at once by kind of device: half a GB on a GPU, in
the arrays that KL takes. A server has but a few GB besides the weights."""

LOGITS_AT_ONCE_ELSEWHERE = 2**26
"""Number of logits of a called head that are held at once on any other device."""


def reference(
    hidden: Tensor,
    targets: Tensor,
    head: Head,
    vocabulary: int,
    matrix: Matrix | None = None,
) -> CleanReadout:
    """Read the clean run's final states, and keep what other schedules are compared with.

    Parameters
    ----------
    hidden : tensor of shape (token, width)
        Final states as the head receives them.
    targets : int64 tensor of shape (token,)
        The tokens that are to be predicted.
    head : callable
        From states (token, width) to logits (token, vocabulary); called where there is no matrix.
    vocabulary : int
        How many logits a token has.
    matrix : Matrix, optional
        The head's matrix.

    Returns
    -------
    CleanReadout
        What `compare` needs, and `readout`: the clean `loss` and `entropy` in nats and `accuracy`
        per token, with `top`, the most likely token.
    """
    hidden = _placed(hidden, matrix)
    targets = targets.to(hidden.device)
    clean: CleanReadout = {
        "hidden": hidden,
        "targets": targets,
        "head": head,
        "vocabulary": vocabulary,
        "matrix": matrix,
    }
    if matrix is None:
        sums, target, _ = _by_calls(hidden[None], clean, ())
    elif matrix["centred"]:
        sums, target, expected = _by_strips(hidden[None], matrix, targets, True)
        clean["expected"] = expected[0]
    else:
        with numerics.exactly(hidden.device):
            sums, target, _ = paired.read(hidden[None], targets, matrix, ())
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
    matrix, before = clean["matrix"], clean["sums"]
    hidden = _placed(hidden, matrix)
    if matrix is None:
        sums, target, diverged = _by_calls(hidden, clean, divergences)
    elif matrix["centred"]:
        backwards = "kl_reverse" in divergences
        sums, target, expected = _by_strips(hidden, matrix, clean["targets"], backwards)
        difference, diverged = clean["hidden"] - hidden, {}
        if "kl" in divergences:
            diverged["kl"] = numerics.kl_from_states(clean["expected"], difference, sums, before)
        if "kl_reverse" in divergences:
            diverged["kl_reverse"] = numerics.kl_from_states(expected, -difference, before, sums)
    else:
        states = torch.cat([clean["hidden"][None], hidden])
        with numerics.exactly(states.device):
            sums, target, diverged = paired.read(states, clean["targets"], matrix, divergences)
        # Of two nearly equal logits, another product may have another one on top.
        largest, top, total, weighted = sums
        before = (largest[0], top[0], total[0], weighted[0])
        sums, target = (largest[1:], top[1:], total[1:], weighted[1:]), target[1:]
    values = {**_values(sums, target, clean["targets"]), **diverged}
    values["agreement"] = (sums[1] == before[1]).to(target.dtype)
    return values


def _placed(hidden: Tensor, matrix: Matrix | None) -> Tensor:
    """Return states on the device of the matrix, and in its type if that is centred."""
    # Of a model over several devices, the last state may be on another than the head.
    if matrix is None:
        return hidden
    weight = matrix["weight"]
    return hidden.to(weight) if matrix["centred"] else hidden.to(weight.device)


def _by_strips(
    hidden: Tensor, matrix: Matrix, targets: Tensor, expect: bool
) -> tuple[numerics.Sums, Tensor, Tensor]:
    """Sums, target logits and, if asked for, the expected rows of the matrix, strip by strip."""
    weight, bias = matrix["weight"], matrix["bias"]
    rows = hidden.shape[0] * hidden.shape[1]
    width = paired.columns_at_once(rows, weight.shape[1], hidden.device.type)
    sums, totals = numerics.start(hidden), matrix.get("totals", numerics.totals)
    expected = torch.zeros_like(hidden)
    for offset in range(0, len(weight), width):
        strip = weight[offset : offset + width]
        logits = hidden @ strip.T
        if bias is not None:
            logits += bias[offset : offset + width]
        if not expect:
            sums = numerics.absorb_alone(sums, logits, offset, totals)
            continue
        sums, weights, factor = numerics.absorb(sums, logits, offset)
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
    matrix = clean["matrix"]
    if matrix is None:
        # A model that is spread over several devices may have its head on another.
        return numerics.precise(clean["head"](states)).to(states.device)
    states, weight, bias = _placed(states, matrix), matrix["weight"], matrix["bias"]
    if matrix["centred"]:
        return torch.nn.functional.linear(states, weight, bias)
    with numerics.exactly(states.device):
        made = products.multiply(products.factors(states, weight), weight)
    return unembedding.apply(made if bias is None else made + bias, matrix["squash"])


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
