"""Interpreter of plans: executes steps on states in the order of the rows.

It is independent of models and of tracing. A step is a plain value, as from `schedules.plain`: the
index of a block, or a tuple of the kind of step and what belongs to it.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustness.trace import block_calls, changes, sublayers

if TYPE_CHECKING:
    from robustness.trace.types import (
        CleanRun,
        Context,
        Contexts,
        Envoy,
        Growths,
        Modules,
        PlainStep,
        Row,
    )


def enter(
    blocks: Sequence[Envoy], attentions: Mapping[int, Envoy]
) -> tuple[list[Tensor], Contexts]:
    """Wait for every block of the clean run, and for some attentions by layer.

    Returns
    -------
    tuple
        Residual streams that enter the blocks, and contexts of blocks and attentions.
    """
    # In the order of execution: nnsight refuses to read what the model has already passed.
    states, of_blocks, of_attentions = [], [], {}
    for layer, block in enumerate(blocks):
        hidden, context = block_calls.split_inputs(block.inputs)
        states.append(hidden)
        of_blocks.append(context)
        if layer in attentions:
            _, of_attentions[layer] = block_calls.split_inputs(attentions[layer].inputs)
    return states, contexts_of(of_blocks, of_attentions)


def share(contexts: Contexts, batch: int) -> Contexts:
    """Return contexts whose tensors have one row where they are the same for all sequences."""
    layers = list(contexts["attentions"])
    of_attentions = [contexts["attentions"][layer] for layer in layers]
    shared = block_calls.share([*contexts["blocks"], *of_attentions], batch)
    count = len(contexts["blocks"])
    return contexts_of(shared[:count], dict(zip(layers, shared[count:])))


def contexts_of(blocks: Sequence[Context], attentions: Mapping[int, Context]) -> Contexts:
    """Return the contexts of blocks and of attentions together."""
    return {"blocks": blocks, "attentions": attentions}


def execute(
    step: PlainStep,
    hidden: Tensor,
    contexts: Contexts,
    modules: Modules,
    copies: int = 1,
    growths: Growths | None = None,
) -> Tensor:
    """Execute a step on states stacked along the batch, and return its output, of the same shape.

    Parameters
    ----------
    step : int or tuple
        A plain step.
    hidden : tensor of shape (copies · sequence, token, width)
        States of `copies` schedules.
    contexts : Contexts
        Contexts of blocks and attentions, by layer.
    modules : Modules
        Modules with `blocks`, for sublayers those of `sublayers.added`, and for fitted maps `maps`.
    copies : int
        Number of states that are stacked.
    growths : Growths
        As for `block_calls.widen`; not needed for a single state.
    """
    if not isinstance(step, tuple):
        growth, batch = growths["blocks"] if growths else {}, len(hidden) // copies
        context = block_calls.widen(contexts["blocks"][step], batch, copies, growth)
        return block_calls.call(modules["blocks"][step], hidden, context)
    kind, inner = step
    if kind == "parallel":
        outs = [execute(member, hidden, contexts, modules, copies, growths) for member in inner]
        # Torch takes half-precision means in float32. A sum of the outputs, divided afterwards,
        # could exceed the range of half precision.
        return torch.stack([out.to(outs[0].device) for out in outs]).mean(0)
    if kind == "scale":
        return changes.times(hidden, inner)
    if kind == "map":
        return changes.through(hidden, modules["maps"][step])
    if kind == "scaled" or kind == "mapped":
        return changed(step, hidden, contexts, modules, copies, growths)
    out = added(step, hidden, contexts, modules, copies, growths)
    # A model that is spread over several devices has blocks on each.
    return hidden.to(out.device) + out


def changed(
    step: PlainStep,
    hidden: Tensor,
    contexts: Contexts,
    modules: Modules,
    copies: int,
    growths: Growths | None,
) -> Tensor:
    """Execute a block or a sublayer of which what it adds is scaled or mapped; see `execute`."""
    kind, (inner, how) = step
    if isinstance(inner, tuple):
        change = added(inner, hidden, contexts, modules, copies, growths)
        if kind == "scaled":
            return changes.plus_times(hidden, change, how)
    else:
        out = execute(inner, hidden, contexts, modules, copies, growths)
        if kind == "scaled":
            return changes.part_way(hidden, out, how)
        change = changes.difference(hidden, out)
    return changes.plus_through(hidden, change, modules["maps"][step])


def added(
    step: PlainStep,
    hidden: Tensor,
    contexts: Contexts,
    modules: Modules,
    copies: int,
    growths: Growths | None,
) -> Tensor:
    """Return what a sublayer adds to states; arguments are those of `execute`."""
    kind, layer = step
    context = sublayers.EMPTY
    if kind == "attention":
        growth, batch = growths["attentions"] if growths else {}, len(hidden) // copies
        context = block_calls.widen(contexts["attentions"][layer], batch, copies, growth)
    which = sublayers.ATTENTION if kind == "attention" else sublayers.MLP
    return sublayers.added(layer, which, hidden, context, modules)


def run(
    rows: Sequence[Row], clean: CleanRun, read: Callable[[list[Tensor], Sequence[Any]], None]
) -> None:
    """Interpret the rows of a plan.

    Parameters
    ----------
    rows : sequence of tuple
        Rows of the plan.
    clean : CleanRun
        Clean run that the plan starts from; its states are removed as soon as no row needs them.
    read : callable
        Function of final states and, for each, the indices of the schedules that end in it.
    """
    states = clean["states"]
    for kind, step, sources, results, done in rows:
        inputs = [states[state] for state in sources]
        for state in done:
            del states[state]
        if kind == "read":
            read(inputs, results)
            continue
        batch = len(inputs[0])
        stacked = inputs[0]
        if len(inputs) > 1:
            # States come from blocks that may be on several devices.
            stacked = torch.cat([state.to(stacked.device) for state in inputs])
        # Freed before the step runs, since they may be most of the memory.
        del inputs
        out = execute(
            step, stacked, clean["contexts"], clean["modules"], len(sources), clean["growths"]
        )
        for state, leaving in zip(results, out.split(batch)):
            states[state] = block_calls.owned(leaving, clean["modules"])
