"""Redundancy of blocks: how little each, or a span of them, turns the residual stream.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustness.trace import capture, numerics, transfer

if TYPE_CHECKING:
    from robustness.trace.types import Captured, Modules, TokenFacts


def measure(captured: Captured, facts: TokenFacts) -> dict[str, Tensor]:
    """Return the influence of a block by token, and the residual stream at the last token.

    Returns
    -------
    dict of str to tensor
        `block_influence` (1, sequence, token), 1 less the cosine of a block's input and output, of
        blocks alone; `last`, the stream at the last token (sequence, width).
    """
    residual = numerics.precise(captured["residual"])
    measured = {"last": capture.at_last_token(residual, facts)}
    if "output" in captured:
        output = numerics.precise(captured["output"])
        cosine = torch.nn.functional.cosine_similarity(residual, output, dim=-1)
        measured["block_influence"] = (1 - cosine)[None]
    return measured


def finish(
    taken: Sequence[dict[str, Any]], modules: Modules, facts: TokenFacts
) -> dict[str, Tensor]:
    """Return mean `block_influence` (layer, sequence) and `angular_distance`; see `angles`."""
    stacked = capture.stack(taken)
    influence = capture.token_mean(stacked["block_influence"][:, 0], facts)
    return {"block_influence": influence, "angular_distance": angles(stacked["last"])}


def angles(last: Tensor) -> Tensor:
    """Angular distances (layer, span, sequence) of states (depth, sequence, width).

    The distance over a span of n blocks is arccos(cos(x_l, x_{l+n})) / π, and NaN if the model ends
    before.
    """
    # In float64: near 1, arccos turns a rounding error of the cosine into its square root.
    wide = last.to(transfer.place_of_sums(last.device)).double()
    wide = wide / wide.norm(dim=-1, keepdim=True)
    cosines = torch.einsum("isf,jsf->ijs", wide, wide).clamp(-1, 1)
    layers = len(last) - 1
    angles = cosines.new_full((layers, layers, last.shape[1]), torch.nan)
    for layer in range(layers):
        angles[layer, : layers - layer] = cosines[layer, layer + 1 :].arccos() / torch.pi
    return angles.to(last.dtype)
