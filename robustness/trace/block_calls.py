"""Calls of blocks, each with the context that the model gives it.

The context of a block is what the model calls it with besides the residual stream: rotary
embeddings, mask, positions. It belongs to the block and follows it wherever a schedule places it.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustness.trace import transfer

if TYPE_CHECKING:
    from robustness.trace.types import Context, ContextPath, Envoy, Growth, Modules

HIDDEN = "hidden_states"
"""Keyword of the residual stream in blocks that do not take it as the first argument."""

EMPTY: Context = ((), {})
"""Context of a module that takes its input alone."""


def split_inputs(inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> tuple[Tensor, Context]:
    """Divide the arguments of a block into the residual stream and the context.

    The context has None in the place of a cache of keys and values.
    """
    # A cache is indexed by block: a block that runs twice, or elsewhere, would append to the keys
    # and values of another call, and with sdpa attention no error would tell.
    args, kwargs = inputs
    hidden = args[0] if args else kwargs[HIDDEN]
    rest = tuple(map(_without_cache, args[1:]))
    named = {key: _without_cache(value) for key, value in kwargs.items() if key != HIDDEN}
    # A step of a cached generation has one token at a later position.
    positions = named.get("position_ids")
    if positions is not None and hidden.shape[1] == 1 and int(positions.min()) > 0:
        raise ValueError(
            "a rewired model has no cache of keys and values: generate with use_cache=False"
        )
    return hidden, (rest, named)


def _without_cache(value: Any) -> Any:
    """Return a value, or None for a cache of transformers, whatever its class."""
    return None if hasattr(value, "get_seq_length") else value


def enter(blocks: Sequence[Envoy]) -> tuple[list[Tensor], list[Context]]:
    """Wait for every block of the clean run, and return what enters each and its context."""
    states, contexts = [], []
    for block in blocks:
        hidden, context = split_inputs(block.inputs)
        states.append(hidden)
        contexts.append(context)
    return states, contexts


def pass_over(head: Envoy) -> None:
    """Skip the head of the clean run, so that no token is unembedded."""
    # One feature stands for the logits. It is a copy, since a view would take the whole tensor
    # along wherever it is sent.
    head.skip(head.input[..., :1].clone())


def owned(tensor: Tensor, modules: Modules) -> Tensor:
    """Return a tensor, or a copy of it where a view would take all it is a view of along."""
    return tensor.clone() if modules.get("apart") else tensor


def call(block: Callable[..., Any], hidden: Tensor, context: Context) -> Tensor:
    """Run a block on states stacked along the batch, and return its output, of the same shape."""
    rest, named = context
    return first(block(hidden, *rest, **named))


def first(out: Any) -> Tensor:
    """Return the first of the values that a module returns, or its only value."""
    return out[0] if isinstance(out, (tuple, list)) else out


def as_returned(hidden: Tensor, count: int) -> Any:
    """Return a state as a block returns it: the first of a tuple of `count`, or for 0 no tuple."""
    return (hidden, *([None] * (count - 1))) if count else hidden


def forgetful(
    states: Sequence[Tensor], contexts: Sequence[Context], blocks: Sequence[Callable[..., Any]]
) -> list[float]:
    """Return the relative error of every block's output after other blocks ran on other states.

    The error is 0 for a block that is a function of its input and its context alone. A block that
    reads keys and values left behind by another, as in Gemma 3n, has an error.

    Parameters
    ----------
    states : sequence of tensor of shape (sequence, token, width)
        Input of each block in the clean run, and the output of the last.
    contexts : sequence of Context
        Context of each block.
    blocks : sequence of callable
        All blocks, in order.
    """
    # Tokens in reverse order: other states of the same shape, to leave other keys and values.
    for hidden, context, block in zip(states, contexts, blocks):
        call(block, hidden.flip(1), context)
    missed = [0.0] * len(blocks)
    # Backwards, so that no block runs right after those that leave it the keys and values it reads.
    for index in reversed(range(len(blocks))):
        output, clean = call(blocks[index], states[index], contexts[index]), states[index + 1]
        miss = (output - clean.to(output.device)).float().abs().max()
        missed[index] = float(miss / clean.float().abs().max())
    return missed


def leaves(value: Any, path: ContextPath = ()) -> list[tuple[ContextPath, Tensor]]:
    """Return every tensor in a context with its place."""
    if isinstance(value, Tensor):
        return [(path, value)]
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (tuple, list)):
        items = enumerate(value)
    tensors = []
    for key, inner in items:
        tensors += leaves(inner, (*path, key))
    return tensors


def sizes(contexts: Sequence[Context]) -> dict[ContextPath, int]:
    """Return the first dimension of every tensor in the contexts of blocks, by place."""
    lengths = {}
    for context in contexts:
        for place, tensor in leaves(context):
            if tensor.ndim:
                lengths[place] = tensor.shape[0]
    return lengths


def growing(
    smaller: dict[ContextPath, int], larger: dict[ContextPath, int]
) -> dict[ContextPath, bool]:
    """Return whether each tensor's first dimension grows with the batch, from `sizes` of two."""
    return {place: larger[place] > smaller[place] for place in smaller.keys() & larger.keys()}


def move(value: Any, device: torch.device) -> Any:
    """Return a tensor, or a dictionary with tensors in it, on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: move(part, device) for key, part in value.items()}
    return value


def share(contexts: Sequence[Context], batch: int) -> list[Context]:
    """Return contexts in which every tensor that is the same for all sequences has one row.

    Such a tensor, mostly a mask, keeps its shape: it becomes a view of its first row. This is
    compared on the device, and all answers are fetched together.

    Parameters
    ----------
    contexts : sequence of Context
        Contexts from one pass.
    batch : int
        Number of sequences in it.
    """
    alike = {}
    for context in contexts:
        for _, tensor in leaves(context):
            # Mostly all blocks are given the same tensor.
            if tensor.ndim > 1 and len(tensor) == batch and not has_one_row(tensor):
                alike[id(tensor)] = (tensor, (tensor == tensor[:1]).all())
    found = transfer.together({key: same for key, (_, same) in alike.items()}, transfer.HOST)
    views: dict[int, Tensor] = {}
    for key, (tensor, _) in alike.items():
        if bool(found[key]):
            # A copy of the row, so that the others are freed.
            views[key] = tensor[:1].clone().expand(tensor.shape)
    return [replaced(context, views) for context in contexts]


def has_one_row(tensor: Tensor) -> bool:
    """Whether a tensor has one row, of which any others are views."""
    return len(tensor) == 1 or tensor.stride(0) == 0


def replaced(value: Any, tensors: Mapping[int, Tensor]) -> Any:
    """Return a context, or part of one, with other tensors in the place of some, by their id."""
    if isinstance(value, Tensor):
        return tensors.get(id(value), value)
    if isinstance(value, dict):
        return {key: replaced(inner, tensors) for key, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple([replaced(inner, tensors) for inner in value])
    return value


def widen(value: Any, batch: int, copies: int, growth: Growth, path: ContextPath = ()) -> Any:
    """Repeat the tensors of a context that have a row per sequence, for several stacked states.

    A tensor with one row for all sequences, as from `share`, stays one: nothing is copied.

    Parameters
    ----------
    value
        A context, or part of one.
    batch : int
        Number of sequences in a state.
    copies : int
        Number of states stacked.
    growth : dict of tuple to bool
        Whether the first dimension of a tensor grows with the batch, by place.
    path : tuple
        Place of `value`.
    """
    if isinstance(value, Tensor):
        # A tensor that the trial texts did not have, such as a mask that only long sequences get,
        # counts as one row per sequence if it has as many.
        unknown = value.ndim > 1 and value.shape[0] == batch
        if copies == 1 or not growth.get(path, unknown):
            return value
        if has_one_row(value):
            return value[:1].expand(copies * len(value), *value.shape[1:])
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
