"""What a sublayer adds to the residual stream, and whether that makes up its block.

A sublayer is `(before, main, after, place)`: what it reads the stream through, mostly a norm; the
attention or the MLP; and the norms that stand between it and the stream (Gemma 2, OLMo 2). What
comes out is added to the stream, in some models times a factor (Granite). Where the main part is
handed the stream and adds to it itself (BLOOM), `place` is that of the argument, after the first;
else None.

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
"""Places of the two sublayers of a block."""

EMPTY: Context = ((), {})

CLEARLY = 4.0
"""How many times as wrong the other answer must be for one to be believed."""


def added(layer: int, which: int, hidden: Tensor, context: Context, modules: Modules) -> Tensor:
    """Run a sublayer on a residual stream, and return what it adds to it, of the same shape.

    Parameters
    ----------
    layer, which : int
        The block, and `ATTENTION` or `MLP`.
    hidden : tensor of shape (sequence, token, width)
    context : tuple
        What attention is called with besides what it reads; for an MLP, `EMPTY`.
    modules : Modules
        `sublayers` of every block, and their `factors`.
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
    # Some MLPs, experts above all, see one long text.
    return scaled(out.view_as(hidden), layer, which, modules)


def handed(layer: int, which: int, entering: Tensor, modules: Modules) -> Tensor | None:
    """Wait for the stream that a sublayer of the clean run adds to itself, or return None.

    Attention is handed the stream that enters the block. To be called before anything of an MLP is
    read.
    """
    _, main, _, place = modules["sublayers"][layer][which]
    if place is None or which == ATTENTION:
        return None if place is None else entering
    stream: Tensor = main.inputs[0][1 + place]
    return stream


def seen(layer: int, which: int, stream: Tensor | None, like: Tensor, modules: Modules) -> Tensor:
    """Wait for a sublayer of the clean run, and return what it adds, of the shape of `like`.

    Parameters
    ----------
    stream : tensor, optional
        What `handed` returned.
    """
    _, main, after, _ = modules["sublayers"][layer][which]
    # Copied, because some models add to it in place; some MLPs see one long text.
    out = block_calls.first((*after[-1:], main)[0].output).clone().view_as(like)
    return scaled(out if stream is None else out - stream, layer, which, modules)


def scaled(out: Tensor, layer: int, which: int, modules: Modules) -> Tensor:
    """Return what a sublayer gives, times the factor with which it is added."""
    factor = modules["factors"][layer][which]
    return out if factor == 1.0 else out * factor


def apply(
    layer: int, hidden: Tensor, context: Context, modules: Modules
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a block sublayer by sublayer; return its output, and what attention and MLP add."""
    attention = added(layer, ATTENTION, hidden, context, modules)
    # What enters may come from another device than the block's.
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
    """Find with what factors attention and MLP of every block are added to the stream.

    One, unless others, by least squares on what the block adds, clearly miss it less.

    Parameters
    ----------
    entering, leaving : sequence of tensor of shape (sequence, token, width)
        The stream before and after each block.
    written : sequence of (tensor, tensor)
        What attention and MLP of each give.
    numbers : sequence of float
        Numbers of the configuration, one of which a factor is if it is as close as can be told.
    """
    known = torch.tensor(numbers, dtype=torch.float64)
    fitted, misses = [], [0.0, 0.0]
    for before, after, outputs in zip(entering, leaving, written):
        columns = torch.stack([out.flatten().cpu().double() for out in outputs], 1)
        stream = [state.flatten().cpu().double() for state in (before, after)]
        change = stream[1] - stream[0]
        solved = torch.linalg.lstsq(columns, change[:, None], driver="gelsd").solution[:, 0]
        closest = known[(known - solved[:, None]).abs().argmin(1)]
        tries = [torch.ones_like(solved), solved, closest]
        miss = [float((columns @ pair - change).norm() / stream[1].norm()) for pair in tries]
        chosen = 2 if miss[2] <= 2 * miss[1] else 1
        fitted.append(tuple(tries[chosen].tolist()))
        misses = [numerics.largest(pair) for pair in zip(misses, (miss[0], miss[chosen]))]
    if CLEARLY * misses[1] < misses[0]:
        return fitted
    return [(1.0, 1.0)] * len(fitted)


def mismatch(
    entering: Sequence[Tensor],
    leaving: Sequence[Tensor],
    contexts: Sequence[Context],
    modules: Modules,
) -> float:
    """Return by how much blocks run sublayer by sublayer miss what leaves them.

    Relative to it, for the worst token of the worst block; infinite if the sublayers cannot be
    called this way.
    """
    worst = []
    for layer, hidden in enumerate(entering):
        try:
            out, _, _ = apply(layer, hidden, contexts[layer], modules)
        except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:
            # That there is no room says nothing of the model.
            if "memory" in str(error).lower():
                raise
            return torch.inf
        whole = leaving[layer].to(out.device).float()
        # A token that the model pads with has an empty stream.
        size = whole.norm(dim=-1).clamp(min=torch.finfo(whole.dtype).tiny)
        worst.append(float(((out - whole).float().norm(dim=-1) / size).max()))
    return numerics.largest(worst)
