"""What a sublayer adds to the residual stream, and whether that makes up its block.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustness import interpreter

ATTENTION, MLP = 0, 1
"""Places of the two sublayers of a block."""

EMPTY: interpreter.Context = ((), {})


def added(
    layer: int, which: int, hidden: Tensor, context: interpreter.Context, parts: dict[str, Any]
) -> Tensor:
    """Run a sublayer on a residual stream, and return what it adds to it, of the same shape.

    Parameters
    ----------
    layer, which : int
        The block, and `ATTENTION` or `MLP`.
    hidden : tensor of shape (sequence, token, width)
    context : tuple
        What attention is called with besides what it reads; for an MLP, `EMPTY`.
    parts : dict
        `attentions`, `mlps` and `block_norms` of the model.
    """
    norms = parts["block_norms"][layer]
    if which == ATTENTION:
        return interpreter.call(parts["attentions"][layer], norms[0](hidden), context)
    return interpreter.call(parts["mlps"][layer], norms[-1](hidden), context)


def apply(
    layer: int, hidden: Tensor, context: interpreter.Context, parts: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a block sublayer by sublayer; return its output, and what attention and MLP add."""
    attention = added(layer, ATTENTION, hidden, context, parts)
    # What enters may come from another device than the block's.
    hidden = hidden.to(attention.device)
    read = hidden if parts["parallel"] else hidden + attention
    mlp = added(layer, MLP, read, EMPTY, parts).to(hidden.device)
    return hidden + attention + mlp, attention, mlp


def mismatch(
    entering: Sequence[Tensor],
    leaving: Sequence[Tensor],
    contexts: Sequence[interpreter.Context],
    parts: dict[str, Any],
) -> float:
    """Return by how much blocks run sublayer by sublayer miss what leaves them.

    Relative to it, for the worst token of the worst block; infinite if the sublayers cannot be
    called this way.
    """
    worst = 0.0
    for layer, hidden in enumerate(entering):
        try:
            out, _, _ = apply(layer, hidden, contexts[layer], parts)
        except (TypeError, ValueError, RuntimeError, LookupError, AttributeError):
            return torch.inf
        whole = leaving[layer].to(out.device).float()
        error = (out - whole).float().norm(dim=-1) / whole.norm(dim=-1)
        worst = max(worst, float(error.max()))
    return worst
