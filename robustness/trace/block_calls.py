"""Calls the blocks of a model with the context that the model calls them with.

A block is something to call, and its context is what the model called it with besides the residual
stream: rotary embeddings, mask, positions. The context belongs to the block and follows it wherever
a schedule takes it.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from robustness.trace.types import Context, ContextPath, Envoy, Growth

HIDDEN = "hidden_states"
"""The keyword by which a block takes the residual stream where it is not the first argument."""


def split_inputs(inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> tuple[Tensor, Context]:
    """Divide the arguments of a block into the residual stream and the context.

    A cache of keys and values is left out: it is indexed by block, and a block that runs twice, or
    in another place, would overwrite what it holds.
    """
    args, kwargs = inputs
    hidden = args[0] if args else kwargs[HIDDEN]
    rest = tuple(None if _is_cache(value) else value for value in args[1:])
    named = {
        key: None if _is_cache(value) else value for key, value in kwargs.items() if key != HIDDEN
    }
    positions = named.get("position_ids")
    if positions is not None and hidden.shape[1] == 1 and int(positions.min()) > 0:
        raise ValueError(
            "a rewired model has no cache of keys and values: generate with use_cache=False"
        )
    return hidden, (rest, named)


def _is_cache(value: Any) -> bool:
    return hasattr(value, "get_seq_length")


def enter(blocks: Sequence[Envoy]) -> tuple[list[Tensor], list[Context]]:
    """Wait for every block of the clean run, and return what enters each and its context."""
    states, contexts = [], []
    for block in blocks:
        hidden, context = split_inputs(block.inputs)
        states.append(hidden)
        contexts.append(context)
    return states, contexts


def pass_over(head: Envoy) -> None:
    """Keep the clean run from unembedding every token: its logits are not needed.

    The one feature that stands for them is copied, or all would be sent where it is.
    """
    head.skip(head.input[..., :1].clone())


def call(block: Callable[..., Any], hidden: Tensor, context: Context) -> Tensor:
    """Run a block on states stacked along the batch, and return its output, of the same shape."""
    rest, named = context
    return first(block(hidden, *rest, **named))


def first(out: Any) -> Tensor:
    """Return the first of what a module returns: it may return several things, or one."""
    return out[0] if isinstance(out, (tuple, list)) else out


def as_returned(hidden: Tensor, count: int) -> Any:
    """Return a state as a block would that returns so many values in a tuple, or none."""
    return (hidden, *([None] * (count - 1))) if count else hidden


def forgetful(
    states: Sequence[Tensor], contexts: Sequence[Context], blocks: Sequence[Callable[..., Any]]
) -> list[float]:
    """Return by how much each block, after others have run on something else, misses its output.

    Relative to it. A block that is a function of its input and its context alone misses nothing;
    one that reads keys and values left behind by another, as in Gemma 3n, does.

    Parameters
    ----------
    states : sequence of tensor of shape (sequence, token, width)
        What enters each block in the clean run, and what leaves the last.
    contexts, blocks
        As for `run`.
    """
    for hidden, context, block in zip(states, contexts, blocks):
        call(block, hidden.flip(1), context)
    missed = [0.0] * len(blocks)
    # Backwards, so that none has just been given what it should have kept.
    for index in reversed(range(len(blocks))):
        out, following = call(blocks[index], states[index], contexts[index]), states[index + 1]
        miss = (out - following.to(out.device)).float().abs().max()
        missed[index] = float(miss / following.float().abs().max())
    return missed


def leaves(value: Any, path: ContextPath = ()) -> list[tuple[ContextPath, Tensor]]:
    """Return every tensor in a context with its place in it."""
    if isinstance(value, Tensor):
        return [(path, value)]
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (tuple, list)):
        items = enumerate(value)
    return [leaf for key, part in items for leaf in leaves(part, (*path, key))]


def sizes(contexts: Sequence[Context]) -> dict[ContextPath, int]:
    """Return the first dimension of every tensor in the contexts of blocks, by place."""
    return {
        place: tensor.shape[0]
        for context in contexts
        for place, tensor in leaves(context)
        if tensor.ndim
    }


def growing(
    smaller: dict[ContextPath, int], larger: dict[ContextPath, int]
) -> dict[ContextPath, bool]:
    """Return of which tensors the first dimension grows with the batch, given `sizes` of two."""
    return {place: larger[place] > smaller[place] for place in smaller.keys() & larger.keys()}


def move(value: Any, device: torch.device) -> Any:
    """Return a tensor, or a dictionary with tensors in it, on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: move(part, device) for key, part in value.items()}
    return value


def widen(value: Any, batch: int, copies: int, growth: Growth, path: ContextPath = ()) -> Any:
    """Repeat what a context holds per sequence, for `copies` states of `batch` sequences each.

    Parameters
    ----------
    value
        A context, or part of one.
    batch, copies : int
        Sequences in a state, and states stacked.
    growth : dict of tuple to bool
        Of the tensors in a context, by place, whether their first dimension grows with the batch.
        One that is not listed (a mask that only long sequences have) does if it is as long.
    path : tuple
        The place of `value`.
    """
    if isinstance(value, Tensor):
        unknown = value.ndim > 1 and value.shape[0] == batch
        if copies == 1 or not growth.get(path, unknown):
            return value
        return value.repeat(copies, *([1] * (value.ndim - 1)))
    if isinstance(value, dict):
        widened = {}
        for key, inner in value.items():
            widened[key] = widen(inner, batch, copies, growth, (*path, key))
        return widened
    if isinstance(value, (tuple, list)):
        members = []
        for index, inner in enumerate(value):
            members.append(widen(inner, batch, copies, growth, (*path, index)))
        return tuple(members)
    return value
