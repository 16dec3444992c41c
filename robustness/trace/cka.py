"""Centred kernel alignment between the residual streams of all depths.

CKA says how alike two representations of the same sequences are, up to rotation and scale. It takes
linear kernels K = X Xᵀ and the unbiased estimator of the Hilbert-Schmidt independence criterion
(Song et al. 2012, eq. 5). On batches of n sequences, with the diagonals of K and L set to 0,

    HSIC(K, L) = (tr(K L) + 1ᵀK1 1ᵀL1 / ((n - 1)(n - 2)) - 2 / (n - 2) 1ᵀK L 1) / (n (n - 3))

The terms are averaged over batches before the ratio is taken (Nguyen et al. 2021, eq. 3):

    CKA = mean HSIC(K, L) / √(mean HSIC(K, K) · mean HSIC(L, L))

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustness.trace import capture

if TYPE_CHECKING:
    from robustness.trace.types import Captured, TokenFacts

FEWEST_SEQUENCES = 4
"""Minimum number of sequences in a batch: the estimator divides by n - 3."""


def last_token(captured: Captured, facts: TokenFacts) -> dict[str, Tensor]:
    """Keep the residual stream at the last token of every sequence, (width, sequence)."""
    # In their own type: on the way from a server, half precision is half as much.
    return {"last": capture.at_last_token(captured["residual"], facts).T}


def hsic(states: Tensor) -> Tensor:
    """HSIC of all pairs of depths, float64 of shape (depth, depth).

    Parameters
    ----------
    states : tensor of shape (depth, sequence, width)
        States of one batch, of at least `FEWEST_SEQUENCES` sequences.
    """
    count = states.shape[1]
    if count < FEWEST_SEQUENCES:
        raise ValueError(f"HSIC takes {FEWEST_SEQUENCES} sequences, not {count}")
    states = states.double()
    gram = states @ states.transpose(1, 2)
    gram.diagonal(dim1=1, dim2=2).zero_()
    rows = gram.sum(2)
    totals = rows.sum(1)
    # Gram matrices are symmetric, so that tr(K L) is the sum of their elementwise product.
    flat = gram.flatten(1)
    products = flat @ flat.T
    means = torch.outer(totals, totals) / ((count - 1) * (count - 2))
    crossed = 2 / (count - 2) * (rows @ rows.T)
    return (products + means - crossed) / (count * (count - 3))


def centred(states: Tensor) -> Tensor:
    """States (…, width) with their mean over features taken out."""
    return states - states.mean(-1, keepdim=True)


def alignment(terms: Tensor) -> tuple[Tensor, Tensor]:
    """CKA from the terms of several batches, and its standard error over batches.

    Parameters
    ----------
    terms : float64 tensor of shape (…, depth, depth, batch)
        HSIC of all pairs of depths.

    Returns
    -------
    value, error : tensor of shape (…, depth, depth)
        CKA, and its standard error from a jackknife over batches; NaN for fewer than three.
    """
    count = terms.shape[-1]
    value = _ratio(terms.mean(-1))
    if count < 3:
        return value, torch.full_like(value, torch.nan)
    without = (terms.sum(-1, keepdim=True) - terms) / (count - 1)
    replicates = _ratio(without.movedim(-1, 0))
    spread = (replicates - replicates.mean(0)).square().sum(0)
    return value, (spread * (count - 1) / count).sqrt()


def _ratio(mean: Tensor) -> Tensor:
    # The unbiased estimate may be negative. Roots are taken one by one, so that it yields NaN: the
    # product of two negative estimates would have a root.
    own = mean.diagonal(dim1=-2, dim2=-1).sqrt()
    return mean / (own[..., :, None] * own[..., None, :])
