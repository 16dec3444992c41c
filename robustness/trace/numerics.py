"""Log-sum-exp, entropy, top token and KL divergence of next-token distributions, piece by piece.

A distribution is over a vocabulary too large to keep for every token, so its logits are absorbed
in pieces of the vocabulary and only four numbers per token stay: the largest logit `m` and its
index, `s = sum exp(z - m)` and `t = sum exp(z - m) (z - m)`. From these

    log-sum-exp  lse = m + log s
    entropy        H = log s - t / s

(the online softmax of Milakov and Gimelshein, 2018, with one more sum). All is in nats.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Sums = tuple[Tensor, Tensor, Tensor, Tensor]
"""Largest logit, its index, `s` and `t`, each of shape (…): one number per token."""


def start(hidden: Tensor) -> Sums:
    """Return the sums over no logits at all, for tokens whose states are `hidden` (…, width)."""
    zeros = torch.zeros_like(hidden[..., 0])
    # The lowest finite number and not -inf, whose difference from itself is not a number.
    largest = torch.full_like(zeros, torch.finfo(hidden.dtype).min)
    return largest, torch.zeros_like(zeros, dtype=torch.long), zeros, zeros


def absorb(sums: Sums, logits: Tensor, offset: int = 0) -> tuple[Sums, Tensor, Tensor]:
    """Add a piece of the vocabulary to the sums.

    Parameters
    ----------
    sums : tuple of tensor
        What `start` or an earlier call returned.
    logits : tensor of shape (…, piece)
        Overwritten.
    offset : int
        Index in the vocabulary of the piece's first column.

    Returns
    -------
    sums : tuple of tensor
        The new sums.
    weights : tensor of shape (…, piece)
        `exp(z - m)` of this piece.
    factor : tensor of shape (…)
        By which the weights of earlier pieces are to be multiplied to be relative to the same `m`.
    """
    largest, top, total, weighted = sums
    highest, index = logits.max(-1)
    new = torch.maximum(largest, highest)
    shift = largest - new
    factor = shift.exp()
    logits -= new[..., None]
    weights = logits.exp()
    weighted = (weighted + total * shift) * factor + dot(weights, logits)
    total = total * factor + weights.sum(-1)
    top = torch.where(highest > largest, index + offset, top)
    return (new, top, total, weighted), weights, factor


def log_sum_exp(sums: Sums) -> Tensor:
    """Log-sum-exp of the absorbed logits, shape (…)."""
    return sums[0] + sums[2].log()


def entropy(sums: Sums) -> Tensor:
    """Shannon entropy of the absorbed distribution in nats, shape (…)."""
    return sums[2].log() - sums[3] / sums[2]


def kl_from_states(expected: Tensor, difference: Tensor, sums: Sums, clean: Sums) -> Tensor:
    """KL(clean ‖ other) in nats, from final states instead of distributions.

    With logits `z = W h + b` and `e = p_clean W`, the cross term is linear in the state, and what
    is left of it is a difference, in which a bias and a common offset of the logits cancel:

        KL = e · (h_clean - h) + lse - lse_clean

    Parameters
    ----------
    expected : tensor of shape (…, width)
        `e`, the row of `W` that is expected under the clean distribution.
    difference : tensor of shape (…, width)
        `h_clean - h`, final states as the head receives them.
    sums, clean : tuple of tensor of shape (…)
        Sums over the other and over the clean logits.
    """
    # Largest logits and logarithms apart: added up, large logits would swallow the digits.
    rise = (sums[0] - clean[0]) + (sums[2].log() - clean[2].log())
    return dot(expected, difference) + rise


def kl_from_logits(clean: Tensor, other: Tensor) -> Tensor:
    """KL(clean ‖ other) in nats, shape (…), from logits of shape (…, vocabulary)."""
    clean = clean - clean.amax(-1, keepdim=True)
    other = other - other.amax(-1, keepdim=True)
    weights = clean.exp()
    total = weights.sum(-1)
    cross = dot(weights, clean - other) / total
    return cross + other.exp().sum(-1).log() - total.log()


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of products over the last dimension, (…), in the precision that the factors have.

    A server computes models of half precision under autocast, which would round the factors.
    """
    if torch.is_autocast_enabled(a.device.type):
        return (a * b).sum(-1)
    return torch.linalg.vecdot(a, b)


def largest(errors: Sequence[float]) -> float:
    """Return the largest of errors, 0 without any; not a number if one is not: max() skips it."""
    return float(torch.tensor([0.0, *errors], dtype=torch.float64).max())


def precise(tensor: Any) -> Tensor:
    """Return the tensor in float32, or in its own type if that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
