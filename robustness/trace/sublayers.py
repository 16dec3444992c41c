"""Attention and MLP of a block: what they add to the residual stream, and whether both add up.

A sublayer is `(before, main, after, place)`: the modules through which it reads the stream, mostly
a norm; the attention or the MLP; and the norms between it and the stream (Gemma 2, OLMo 2). Its
output is added to the stream, in some models times a factor (Granite). In BLOOM the attention or
the MLP is given the stream as a further argument and adds to it itself: `place` is then the index
of that argument among those after the first, and else None.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustness.trace import block_calls, numerics

if TYPE_CHECKING:
    from robustness.trace.types import Context, Modules

ATTENTION, MLP = 0, 1
"""Indices of the two sublayers of a block."""

EMPTY = block_calls.EMPTY
"""Context of a module that takes its input alone."""

CLEARLY = 4.0
"""Ratio of errors from which factors other than one are believed."""


def added(layer: int, which: int, hidden: Tensor, context: Context, modules: Modules) -> Tensor:
    """Run a sublayer on a residual stream, and return what it adds to it, of the same shape.

    Parameters
    ----------
    layer : int
        Index of the block.
    which : int
        `ATTENTION` or `MLP`.
    hidden : tensor of shape (sequence, token, width)
        Residual stream that enters the sublayer.
    context : tuple
        Context of the attention; for an MLP, `EMPTY`.
    modules : Modules
        Modules with `sublayers` and `factors`.
    """
    before, main, after, place = modules["sublayers"][layer][which]
    out = hidden
    for part in before:
        out = block_calls.call(part, out, EMPTY)
    if place is not None:
        rest, named = context
        context = (*rest[:place], hidden, *rest[place + 1 :]), named
    out = block_calls.call(main, out, context)
    if place is not None:
        out = out - hidden.to(out.device)
    for part in after:
        out = block_calls.call(part, out, EMPTY)
    # Some MLPs, mostly mixtures of experts, flatten sequences and tokens into one dimension.
    return scaled(out.view_as(hidden), layer, which, modules)


def handed(layer: int, which: int, entering: Tensor, modules: Modules) -> Tensor | None:
    """Wait for the stream that a sublayer of the clean run adds to itself, or return None.

    It must be called before anything of an MLP is read: a trace serves values in the order in which
    the model computes them.
    """
    _, main, _, place = modules["sublayers"][layer][which]
    if place is None:
        return None
    # Attention comes first in a block, so that its stream is the one that enters.
    if which == ATTENTION:
        return entering
    stream: Tensor = main.inputs[0][1 + place]
    return stream


def seen(layer: int, which: int, stream: Tensor | None, like: Tensor, modules: Modules) -> Tensor:
    """Wait for a sublayer of the clean run, and return what it adds, of the shape of `like`.

    Parameters
    ----------
    stream : tensor, optional
        Stream that the sublayer adds to itself, from `handed`.
    """
    _, main, after, _ = modules["sublayers"][layer][which]
    # Copied, because some models add to it in place; viewed, because some MLPs flatten the batch.
    out = block_calls.first((*after[-1:], main)[0].output).clone().view_as(like)
    return scaled(out if stream is None else out - stream, layer, which, modules)


def scaled(out: Tensor, layer: int, which: int, modules: Modules) -> Tensor:
    """Return the output of a sublayer times the factor with which it is added to the stream."""
    factor = modules["factors"][layer][which]
    return out if factor == 1.0 else out * factor


def apply(
    layer: int, hidden: Tensor, context: Context, modules: Modules
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a block as its two sublayers; return its output, and what attention and MLP add."""
    attention = added(layer, ATTENTION, hidden, context, modules)
    # A model that is spread over several devices has blocks on each.
    hidden = hidden.to(attention.device)
    read = hidden if modules["parallel"] else hidden + attention
    mlp = added(layer, MLP, read, EMPTY, modules).to(hidden.device)
    return hidden + attention + mlp, attention, mlp


def factors(
    entering: Sequence[Tensor],
    leaving: Sequence[Tensor],
    written: Sequence[Sequence[Tensor]],
    numbers: Sequence[float],
) -> list[tuple[float, ...]]:
    """Find the factors with which attention and MLP of every block are added to the stream.

    The factors are one, unless others found by least squares have clearly smaller errors.

    Parameters
    ----------
    entering, leaving : sequence of tensor of shape (sequence, token, width)
        Residual stream before and after each block.
    written : sequence of (tensor, tensor)
        Outputs of attention and MLP of each block.
    numbers : sequence of float
        Numbers of the configuration, which replace fitted factors close to them.
    """
    known = torch.tensor(numbers, dtype=torch.float64)
    fitted = []
    with_ones = with_fitted = 0.0
    for before, after, outputs in zip(entering, leaving, written):
        # Not every device has float64.
        columns = torch.stack([out.flatten().cpu().double() for out in outputs], 1)
        whole = after.flatten().cpu().double()
        change = whole - before.flatten().cpu().double()
        solved = torch.linalg.lstsq(columns, change[:, None], driver="gelsd").solution[:, 0]
        closest = known[(known - solved[:, None]).abs().argmin(1)]
        candidates = (torch.ones_like(solved), solved, closest)
        errors = [float((columns @ pair - change).norm() / whole.norm()) for pair in candidates]
        # Exact numbers of the configuration are preferred, but not at the price of a worse fit.
        chosen = 2 if errors[2] <= 2 * errors[1] else 1
        fitted.append(tuple(candidates[chosen].tolist()))
        with_ones = numerics.largest((with_ones, errors[0]))
        with_fitted = numerics.largest((with_fitted, errors[chosen]))
    if CLEARLY * with_fitted < with_ones:
        return fitted
    return [(1.0, 1.0)] * len(fitted)


def mismatch(
    entering: Sequence[Tensor],
    leaving: Sequence[Tensor],
    contexts: Sequence[Context],
    modules: Modules,
) -> float:
    """Return the largest relative error, over tokens and blocks, of blocks run as two sublayers.

    It is infinite if the sublayers cannot be called this way.
    """
    worst = []
    for layer, hidden in enumerate(entering):
        try:
            out, _, _ = apply(layer, hidden, contexts[layer], modules)
        except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:
            # Running out of memory says nothing about the structure of the model.
            if "memory" in str(error).lower():
                raise
            return torch.inf
        whole = leaving[layer].to(out.device).float()
        # The stream of a padding token may be all zeros.
        size = whole.norm(dim=-1).clamp(min=torch.finfo(whole.dtype).tiny)
        worst.append(float(((out - whole).float().norm(dim=-1) / size).max()))
    return numerics.largest(worst)
