"""Log-sum-exp, entropy, top token and KL divergence of next-token distributions, piece by piece.

The logits of all tokens over a whole vocabulary do not fit into memory. They are absorbed piece by
piece of the vocabulary, and four numbers per token remain: the largest logit `m` and its index,
`s = sum exp(z - m)` and `t = sum exp(z - m) (z - m)`. From these

    log-sum-exp  lse = m + log s
    entropy        H = log s - t / s

(the online softmax of Milakov and Gimelshein, 2018, with one more sum). All is in nats.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

Sums = tuple[Tensor, Tensor, Tensor, Tensor]
"""Largest logit, its index, `s` and `t`, each of shape (…): one number per token."""

Totals = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Function of logits and of the largest of each token, as `totals` is."""


def exactly(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which products on a device are computed in the type of their factors.

    A server runs traces of half-precision models under autocast, which rounds the factors. That is
    a state of the thread, in which the model itself computes too: nothing may be read or called
    within this context.
    """
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def start(hidden: Tensor) -> Sums:
    """Return the sums before any logits, for tokens whose states are `hidden` (…, width)."""
    zeros = torch.zeros_like(hidden[..., 0])
    # The lowest finite number instead of -inf, whose difference from itself is not a number.
    largest = torch.full_like(zeros, torch.finfo(hidden.dtype).min)
    return largest, torch.zeros_like(zeros, dtype=torch.long), zeros, zeros


def absorb(sums: Sums, logits: Tensor, offset: int | Tensor = 0) -> tuple[Sums, Tensor, Tensor]:
    """Add a piece of the vocabulary to the sums.

    Parameters
    ----------
    sums : tuple of tensor
        Sums from `start` or an earlier call.
    logits : tensor of shape (…, piece)
        Logits of the piece; they are overwritten.
    offset : int or int64 tensor of shape ()
        Index in the vocabulary of the piece's first column.

    Returns
    -------
    sums : tuple of tensor
        The new sums.
    weights : tensor of shape (…, piece)
        `exp(z - m)` of this piece.
    factor : tensor of shape (…)
        Factor that makes the weights of earlier pieces relative to the new `m`.
    """
    largest, top = _follow(sums, logits, offset)
    # In place: this is the largest array of a reading, and copies take memory and time.
    logits -= largest[..., None]
    weights = logits.exp()
    logits *= weights
    factor = (sums[0] - largest).exp()
    merged = _merge(sums, largest, weights.sum(-1), logits.sum(-1))
    return (largest, top, *merged), weights, factor


def absorb_alone(sums: Sums, logits: Tensor, offset: int, totals: Totals) -> Sums:
    """Add a piece of the vocabulary to the sums, as `absorb` does, and return them alone.

    Parameters
    ----------
    sums, logits, offset
        As for `absorb`.
    totals : callable
        `totals`, or a faster form of it.
    """
    largest, top = _follow(sums, logits, offset)
    return largest, top, *_merge(sums, largest, *totals(logits, largest))


def totals(logits: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    """Return `sum exp(z - m)` and `sum exp(z - m) (z - m)` (…) of logits, which are overwritten."""
    logits -= largest[..., None]
    weights = logits.exp()
    logits *= weights
    return weights.sum(-1), logits.sum(-1)


def _merge(sums: Sums, largest: Tensor, total: Tensor, weighted: Tensor) -> tuple[Tensor, Tensor]:
    """Return `s` and `t` of earlier pieces and of another one, relative to the new `m`."""
    before, _, total_before, weighted_before = sums
    shift = before - largest
    factor = shift.exp()
    moved = (weighted_before + total_before * shift) * factor
    return total_before * factor + total, moved + weighted


def _follow(sums: Sums, logits: Tensor, offset: int | Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest logit of each token so far, and its index."""
    largest, top, *_ = sums
    # Strictly larger, so that of equal logits in two pieces the first wins.
    if logits.device.type != "cpu" or torch.compiler.is_compiling():
        highest, index = logits.max(-1)
        top = torch.where(highest > largest, index + offset, top)
    else:
        # Finding an index takes a CPU several times as long as finding the largest logit, and after
        # a few pieces hardly a token has a new one.
        highest = logits.amax(-1)
        rises = highest > largest
        top = top.masked_scatter(rises, logits[rises].argmax(-1) + offset)
    return torch.maximum(largest, highest), top


def log_sum_exp(sums: Sums) -> Tensor:
    """Log-sum-exp of the absorbed logits, shape (…)."""
    return sums[0] + sums[2].log()


def entropy(sums: Sums) -> Tensor:
    """Shannon entropy of the absorbed distribution in nats, shape (…)."""
    return sums[2].log() - sums[3] / sums[2]


def kl_from_states(expected: Tensor, difference: Tensor, sums: Sums, clean: Sums) -> Tensor:
    """KL(clean ‖ other) in nats, from final states instead of distributions.

    With logits `z = W h + b` and `e = p_clean W`, the cross term is linear in the state. It becomes
    a difference, in which a bias and a common offset of the logits cancel:

        KL = e · (h_clean - h) + lse - lse_clean

    Parameters
    ----------
    expected : tensor of shape (…, width)
        Expected row of `W` under the clean distribution, `e`.
    difference : tensor of shape (…, width)
        Difference of final states as the head receives them, `h_clean - h`.
    sums, clean : tuple of tensor of shape (…)
        Sums over the other and over the clean logits.
    """
    # Differences of largest logits and of logarithms are taken apart: added to a large logit, the
    # logarithm would lose its last digits.
    rise = (sums[0] - clean[0]) + (sums[2].log() - clean[2].log())
    return dot(expected, difference) + rise


def kl_from_logits(clean: Tensor, other: Tensor) -> Tensor:
    """KL(clean ‖ other) in nats, shape (…), from logits of shape (…, vocabulary)."""
    # The largest logit becomes 0, so that no exponential overflows.
    clean = clean - clean.amax(-1, keepdim=True)
    other = other - other.amax(-1, keepdim=True)
    weights = clean.exp()
    total = weights.sum(-1)
    cross = dot(weights, clean - other) / total
    return cross + other.exp().sum(-1).log() - total.log()


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of products over the last dimension, (…), in the precision of the factors."""
    # A GPU has no fast product of many pairs of vectors. A server runs half-precision models under
    # autocast, which rounds the factors of matrix products, but not of an elementwise product.
    if a.device.type != "cpu" or torch.is_autocast_enabled(a.device.type):
        return (a * b).sum(-1)
    return torch.linalg.vecdot(a, b)


def largest(errors: Sequence[float]) -> float:
    """Return the largest of several errors, NaN if one is NaN, and 0 if there are none."""
    # Python's max() skips a NaN that is not the first.
    return float(torch.tensor([0.0, *errors], dtype=torch.float64).max())


def precise(tensor: Any) -> Tensor:
    """Return the tensor in float32, or in its own type if that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
