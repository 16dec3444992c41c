"""Passes: forward passes of the model in which some blocks are left out.

A server may keep a trace apart from the weights, so that whatever is read, replaced or called
crosses a socket. There a plan runs as passes: a state enters in the place of a block's output, the
model itself runs the blocks that follow, and the states that are needed leave, each once. All
other blocks, and the head, are skipped with a placeholder of a single number.

Each pass is a trace of its own within one session. Trace bodies reach this module, so it keeps to
plain functions of tensors: it travels as source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustness.trace import block_calls, unembedding

if TYPE_CHECKING:
    from robustness.trace.types import (
        CleanRun,
        Context,
        HeadThere,
        Modules,
        PassRow,
        Squash,
        Walkway,
    )


def enter(
    states: Sequence[int], way: Walkway, entered: bool = True
) -> tuple[dict[int, Tensor], Tensor, Context]:
    """Run the clean pass, and return what later passes begin from.

    Parameters
    ----------
    states : sequence of int
        Numbers of the clean states that are kept: n is what n blocks leave.
    way : Walkway
        The model and its tokens.
    entered : bool
        Whether what the first block is given is kept, too: state 0, and its context.

    Returns
    -------
    states : dict of int to tensor of shape (sequence, token, width)
        The states by number.
    final : tensor of shape (sequence, token, width)
        Last residual stream, as the head receives it.
    context : Context
        Context of the first block, if it was kept.
    """
    blocks, tokens = way["blocks"], way["tokens"]
    last = way["norms"][-1] if way["norms"] else blocks[-1]
    leaving = [blocks[state - 1] for state in states if state]
    caches, kept, entry = [], {}, block_calls.EMPTY
    with way["traced"].trace(tokens, use_cache=False) as tracer:
        # A cache is sent what it keeps; a value that is read is also sent back. A sandbox takes
        # one cache a trace, and only before anything is read.
        caches.append(tracer.cache(modules=[*leaving, last], device=None))
        if entered:
            kept[0], entry = block_calls.split_inputs(blocks[0].inputs)
        way["head"].skip(torch.zeros(1).expand(*tokens.shape, 1))
    (left,) = caches
    for state in states:
        if state:
            kept[state] = block_calls.first(left[blocks[state - 1].path].output)
    final = block_calls.first(left[last.path].output)
    _forget(left, way)
    return kept, final, entry


def begin(
    states: Sequence[int], entered: bool, way: Walkway, there: HeadThere | None, squash: Squash
) -> CleanRun:
    """Run the clean pass, and return what readings of passes take.

    Parameters
    ----------
    states, entered, way
        As for `enter`.
    there : HeadThere, optional
        What is known of the head, as for `unembedding.matrix_there`.
    squash : tuple
        Scale and soft cap of the logits.
    """
    head = way["head"]

    def made() -> Any:
        return unembedding.matrix_there(head, there)

    def logits(hidden: Tensor) -> Any:
        return during(way, lambda: head(hidden))

    matrix = during(way, made) if there else None
    kept, final, entry = enter(states, way, entered)
    # A final state has been through the norms.
    modules: Modules = {
        "norms": (),
        "head": logits,
        "squash": squash,
        "matrix": matrix,
        "apart": True,
    }
    return {
        "states": kept,
        "final": final,
        "modules": modules,
        "run": run,
        "way": way,
        "entry": entry,
    }


def run(
    rows: Sequence[PassRow],
    clean: CleanRun,
    read: Callable[[list[Tensor], Sequence[Any]], None],
) -> None:
    """Run the passes of a plan.

    Parameters
    ----------
    rows : sequence of tuple
        Passes, as from `robustness.schedules.passes`.
    clean : CleanRun
        Clean run with `way` and `entry`; its states are removed as soon as no pass needs them.
    read : callable
        Function of final states, as the head receives them, and, for each, the indices of the
        schedules that end in it.
    """
    states, way = clean["states"], clean["way"]
    layers = len(way["blocks"])
    for source, first, stop, kept, ends, done in rows:
        final = clean["final"]
        # Nothing is left to run of the clean schedule.
        if (source, first) != (layers, layers):
            row = (first, stop, kept, bool(ends))
            left, final = forward(states[source], row, clean["entry"], way)
            states |= left
        for state in done:
            states.pop(state, None)
        if ends:
            read([final], [ends])


def forward(
    state: Tensor,
    row: tuple[int, int, Sequence[tuple[int, int]], bool],
    entry: Context,
    way: Walkway,
) -> tuple[dict[int, Tensor], Tensor]:
    """Run one pass.

    Parameters
    ----------
    state : tensor of shape (sequence, token, width)
        State that enters.
    row : tuple
        First block that runs, and the one before which the pass stops; blocks whose output is kept,
        each with the number of the state; and whether what the head receives is kept.
    entry : Context
        Context of the first block.
    way : Walkway
        The model and its tokens.

    Returns
    -------
    states : dict of int to tensor of shape (sequence, token, width)
        States that are kept, by number.
    final : tensor of shape (sequence, token, width)
        What the head receives, if it is kept.
    """
    first, stop, kept, ending = row
    blocks, caches = way["blocks"], []
    leaving = [blocks[block] for block, _ in kept]
    last = way["norms"][-1] if way["norms"] else blocks[-1]
    if ending:
        leaving.append(last)
    nothing = placeholder(state)
    with way["traced"].trace(way["tokens"], use_cache=False) as tracer:
        caches.append(tracer.cache(modules=leaving, device=None))
        skip(state, first, stop, entry, way)
        way["head"].skip(nothing[..., :1])
    (left,) = caches
    states = {number: block_calls.first(left[blocks[block].path].output) for block, number in kept}
    final = block_calls.first(left[last.path].output) if ending else nothing
    _forget(left, way)
    return states, final


def generate(
    rows: Sequence[PassRow],
    start: Sequence[int],
    way: Walkway,
    options: Mapping[str, Any],
    most: int,
) -> Tensor:
    """Return a prompt and the tokens that follow it under one schedule, each chosen by `generate`.

    Parameters
    ----------
    rows : sequence of tuple
        Passes of the schedule.
    start : sequence of int
        The clean state from which they begin.
    way : Walkway
        The model and the prompt, of one sequence.
    options : mapping
        Arguments of transformers' `generate`.
    most : int
        Maximum number of tokens.
    """
    written, layers = way["tokens"], len(way["blocks"])
    entered = any(0 in (source, first) for source, first, *_ in rows)
    for _ in range(most):
        here: Walkway = {**way, "tokens": written}
        states, _, entry = enter(start, here, entered)
        for source, first, stop, kept, _, _ in rows[:-1]:
            left, _ = forward(states[source], (first, stop, kept, False), entry, here)
            states |= left
        source, first, stop, *_ = rows[-1]
        made = []
        with way["traced"].generate(written, **{**options, "max_new_tokens": 1}) as tracer:
            if first < layers or source != layers:
                skip(states[source], first, stop, entry, here)
            made.append(tracer.result)
        written = made[0].cpu()
        if int(written[0, -1]) in way["ends"]:
            break
    return written


def skip(state: Tensor, first: int, stop: int, entry: Context, way: Walkway) -> None:
    """Let a state enter before block `first`, and skip all blocks but those to before `stop`."""
    nothing = block_calls.as_returned(placeholder(state), way["returns"])
    if first == 0:
        rest, named = entry
        way["blocks"][0].inputs = ((state, *rest), named)
    for layer, block in enumerate(way["blocks"]):
        if layer == first - 1:
            block.skip(block_calls.as_returned(state, way["returns"]))
        elif not first <= layer < stop:
            block.skip(nothing)


def placeholder(like: Tensor) -> Tensor:
    """Return zeros of the shape of a state, which are a single number in memory and when sent."""
    return like.new_zeros(1).expand(like.shape)


def during(way: Walkway, function: Callable[[], Any]) -> Any:
    """Return what a function returns that calls modules, which takes a model that runs.

    Here it runs on a single token.
    """
    made = []
    with way["traced"].trace(way["tokens"][:1, :1], use_cache=False):
        way["head"].skip(torch.zeros(1, 1, 1))
        made.append(function())
    return made[0]


def _forget(view: Any, way: Walkway) -> None:
    """Free what a cache holds, and keep the cache itself."""
    # nnsight marks a cache as saved by its identity, which another object could get after it.
    view._cache.entries.clear()
    way["caches"].append(view)
