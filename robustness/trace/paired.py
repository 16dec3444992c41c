"""Readouts from clean and changed logits of one product, strip of the vocabulary by strip.

For every strip of the head's matrix, logits of the clean run and of other schedules are computed in
one product and reduced at once:

    KL(clean ‖ other) = (Σ e_c (z_c - z)) / s_c + lse - lse_c,   e = exp(z - m),  s = Σ e

Whatever the product adds to the logits of all schedules alike cancels in the difference, so that
the matrix can be used as it is: without a copy in a wider type, centred or not, and of logits that
are capped. The price is that the clean logits are computed again in each reading.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustness.trace import numerics, products, unembedding

if TYPE_CHECKING:
    from robustness.trace.types import Absorbed, Matrix

LOGITS_AT_ONCE = {"cpu": 2**20, "cuda": 2**23}
"""Number of logits of a strip by kind of device: as many as its cache holds in float32."""

PRODUCTS_AT_ONCE = {"cuda": 2**35}
"""Number of products of two numbers that a strip has at least, by kind of device. They take a GPU a
tenth of a millisecond; of fewer, the host cannot hand out as many as the device does meanwhile."""

LOGITS_AT_ONCE_ELSEWHERE = 2**26
"""Number of logits of a strip on any other device."""

ROWS_AT_ONCE = {"cuda": 8192}
"""Number of states of tokens in a product by kind of device; on any other, all of them."""

NARROWEST_STRIP = 256
"""Fewest columns of a strip: narrower products waste the processor."""


def read(
    states: Tensor, targets: Tensor, matrix: Matrix, divergences: Sequence[str]
) -> tuple[numerics.Sums, Tensor, dict[str, Tensor]]:
    """Read states, and compare them with the first.

    Parameters
    ----------
    states : tensor of shape (state, token, width)
        States as the head receives them, on the device of the matrix.
    targets : int64 tensor of shape (token,)
        The tokens that are to be predicted.
    matrix : Matrix
        The head's own matrix.
    divergences : sequence of str
        Which are wanted of `kl`, KL(first ‖ other), and `kl_reverse`, KL(other ‖ first).

    Returns
    -------
    sums : tuple of tensor of shape (state, token)
        As of `numerics.absorb`.
    target : tensor of shape (state, token)
        Logits of the targets.
    diverged : dict of str to tensor of shape (state - 1, token)
        The divergences of all states but the first.
    """
    count, tokens = states.shape[:2]
    rows = ROWS_AT_ONCE.get(states.device.type, count * tokens)
    size = max(1, rows // count)
    chunks = []
    for first in range(0, tokens, size):
        chosen = slice(first, first + size)
        chunks.append(_read_chunk(states[:, chosen], targets[chosen], matrix, divergences))
    largest, top, total, weighted, target, *crosses = (
        torch.cat(column, dim=-1) for column in zip(*chunks)
    )
    rise = (largest[1:] - largest[:1]) + (total[1:].log() - total[:1].log())
    divided = {"kl": total[:1], "kl_reverse": total[1:]}
    signed = {"kl": rise, "kl_reverse": -rise}
    diverged = {}
    for name, cross in zip(divergences, crosses):
        diverged[name] = cross / divided[name] + signed[name]
    return (largest, top, total, weighted), target, diverged


def columns_at_once(rows: int, width: int, device: str) -> int:
    """Return the number of columns of a strip for a product of rows (row, width)."""
    logits = LOGITS_AT_ONCE.get(device, LOGITS_AT_ONCE_ELSEWHERE)
    logits = max(logits, PRODUCTS_AT_ONCE.get(device, 0) // width)
    columns = min(logits, LOGITS_AT_ONCE_ELSEWHERE) // rows
    # Products of uneven widths take a CPU longer, and each width may take code of its own.
    return max(NARROWEST_STRIP, columns - columns % NARROWEST_STRIP)


def _read_chunk(
    states: Tensor, targets: Tensor, matrix: Matrix, divergences: Sequence[str]
) -> Absorbed:
    """Read some tokens of all states: their sums, target logits and crosses (state, token)."""
    weight, bias = matrix["weight"], matrix["bias"]
    parts = products.factors(states.flatten(0, 1), weight)
    columns = columns_at_once(parts[..., 0].numel(), weight.shape[1], weight.device.type)
    strips = weight.split(columns)
    offsets = torch.arange(0, len(weight), columns, device=weight.device)
    reduce = matrix.get("absorb", absorb)
    absorbed: Absorbed | None = None
    for index, strip in enumerate(strips):
        logits = products.multiply(parts, strip).unflatten(0, states.shape[:2])
        if bias is not None:
            logits = logits + bias[index * columns : (index + 1) * columns]
        logits = unembedding.apply(logits, matrix["squash"])
        if absorbed is None:
            absorbed = begin(logits, len(divergences))
        absorbed = reduce(absorbed, logits, targets, offsets[index], tuple(divergences))
    assert absorbed is not None
    return absorbed


def begin(like: Tensor, divergences: int) -> Absorbed:
    """Return what `absorb` takes before the first strip, of logits (state, token, column)."""
    largest, top, total, weighted = numerics.start(like)
    crosses = [torch.zeros_like(total[1:]) for _ in range(divergences)]
    # A copy, since compiled code tells arguments that are one tensor from others.
    return largest, top, total, weighted.clone(), torch.zeros_like(total), *crosses


def absorb(
    absorbed: Absorbed, logits: Tensor, targets: Tensor, offset: Tensor, divergences: Sequence[str]
) -> Absorbed:
    """Add a strip of the vocabulary to sums, target logits and crosses.

    Parameters
    ----------
    absorbed : tuple of tensor
        What `begin` or an earlier call returned.
    logits : tensor of shape (state, token, column)
        Logits of the strip; they are overwritten.
    targets : int64 tensor of shape (token,)
        The tokens that are to be predicted.
    offset : int64 tensor of shape ()
        Index in the vocabulary of the strip's first column.
    divergences : sequence of str
        Names of the crosses: Σ e_first (z_first - z) is that of `kl`, and Σ e (z - z_first) that
        of `kl_reverse`.
    """
    largest, top, total, weighted, target, *crosses = absorbed
    local = targets - offset
    inside = (local >= 0) & (local < logits.shape[-1])
    indices = local.clamp(0, logits.shape[-1] - 1).expand(logits.shape[:-1])
    target = torch.where(inside, logits.gather(-1, indices[..., None])[..., 0], target)
    # Before the logits are overwritten.
    gaps = logits[:1] - logits[1:] if divergences else logits
    sums, weights, factor = numerics.absorb((largest, top, total, weighted), logits, offset)
    grown = []
    for name, cross in zip(divergences, crosses):
        if name == "kl":
            grown.append(cross * factor[:1] + (weights[:1] * gaps).sum(-1))
        else:
            grown.append(cross * factor[1:] - (weights[1:] * gaps).sum(-1))
    return *sums, target, *grown
