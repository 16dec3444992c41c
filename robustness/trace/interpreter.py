"""Runs a plan: executes steps on states in the order that the plan says.

It knows neither models nor tracing. A step is a plain value, as from `schedule.plain`: the index of
a block, or `("attention", i)`, `("mlp", i)`, `("parallel", steps)`.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from robustness.trace import block_calls, sublayers


def enter(blocks: Sequence[Any], attentions: dict[int, Any]) -> tuple[list[Tensor], dict[str, Any]]:
    """Wait for every block of the clean run, and for some attentions by layer.

    Returns
    -------
    tuple
        What enters every block, and the contexts of `blocks` and `attentions`, by layer.
    """
    states, contexts, within = [], [], {}
    for layer, block in enumerate(blocks):
        hidden, context = block_calls.split_inputs(block.inputs)
        states.append(hidden)
        contexts.append(context)
        if layer in attentions:
            _, within[layer] = block_calls.split_inputs(attentions[layer].inputs)
    return states, {"blocks": contexts, "attentions": within}


def execute(
    step: Any,
    hidden: Tensor,
    contexts: dict[str, Any],
    parts: dict[str, Any],
    copies: int = 1,
    grows: dict[str, Any] | None = None,
) -> Tensor:
    """Execute a step on states stacked along the batch, and return its output, of the same shape.

    Parameters
    ----------
    step : int or tuple
        A plain step.
    hidden : tensor of shape (copies · sequence, token, width)
        States of `copies` schedules.
    contexts : dict
        The contexts of `blocks` and `attentions`, by layer.
    parts : dict
        `blocks`, and for sublayers what `sublayers.added` takes.
    copies : int
        How many states are stacked.
    grows : dict
        Of `blocks` and `attentions`, as for `interpreter.widen`; not needed for a single state.
    """
    batch = len(hidden) // copies
    if not isinstance(step, tuple):
        known = grows["blocks"] if grows else {}
        return block_calls.call(
            parts["blocks"][step],
            hidden,
            block_calls.widen(contexts["blocks"][step], batch, copies, known),
        )
    kind, inner = step
    if kind == "parallel":
        outs = [execute(member, hidden, contexts, parts, copies, grows) for member in inner]
        # Half-precision means are taken in float32: a sum could exceed their range.
        return torch.stack([out.to(outs[0].device) for out in outs]).mean(0)
    context = sublayers.EMPTY
    if kind == "attention":
        known = grows["attentions"] if grows else {}
        context = block_calls.widen(contexts["attentions"][inner], batch, copies, known)
    which = sublayers.ATTENTION if kind == "attention" else sublayers.MLP
    out = sublayers.added(inner, which, hidden, context, parts)
    # What enters may come from another device than the block's.
    return hidden.to(out.device) + out


def run(
    rows: Sequence[Any],
    states: dict[int, Tensor],
    contexts: dict[str, Any],
    grows: dict[str, Any],
    parts: dict[str, Any],
    read: Callable[[list[Tensor], Sequence[Any]], None],
) -> None:
    """Interpret the rows of a plan.

    Parameters
    ----------
    rows : sequence of tuple
        The plan's rows.
    states : dict of int to tensor of shape (sequence, token, width)
        The clean states that the plan starts from; emptied on the way.
    contexts, grows, parts : dict
        As for `execute`.
    read : callable
        Given final states and, for each, the indices of the schedules that end in it.
    """
    for kind, step, sources, results, done in rows:
        inputs = [states[state] for state in sources]
        for state in done:
            del states[state]
        if kind == "read":
            read(inputs, results)
            continue
        batch = len(inputs[0])
        # States come from blocks that may be on several devices.
        where = inputs[0].device
        stacked = inputs[0] if len(inputs) == 1 else torch.cat([one.to(where) for one in inputs])
        del inputs
        out = execute(step, stacked, contexts, parts, len(sources), grows)
        for state, part in zip(results, out.split(batch)):
            states[state] = part
