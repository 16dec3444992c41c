"""Compiled blocks: what schedules call in place of a model's blocks, by torch.compile.

nnsight wraps the forward method of every submodule, and such a wrapper cannot be compiled. So a
copy of each block is compiled that shares its tensors and has no wrapper. All blocks go through one
compiled function: blocks that are alike share its code, and the numbers of sequences and tokens
stay symbols. What is compiled anew is a block of another kind, a single sequence, and a mask where
there was none.

The clean pass calls the model's own blocks. Compiled ones differ from them by rounding alone, which
is measured on a text before they are used. They only save time: a model whose blocks cannot be
compiled runs without them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import nnsight
import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch.nn import Module

from robustness.errors import Refusal, first_line, is_out_of_memory, last_line
from robustness.models.model import Model
from robustness.models.self_check import TOLERANCE
from robustness.models.separate_bias import class_of
from robustness.ndif.patience import Notify
from robustness.trace import block_calls, numerics

BACKEND = "inductor"
"""Torch's compiler: C++ for a CPU, which takes a C++ compiler, and Triton for a GPU."""

TRIAL_TOKENS = 256
"""Maximum length of the sequences on which blocks are compiled. Compiled loops are divided among
threads by the sizes that they are compiled for, so that these must not be tiny."""

SHORT_TEXTS = (7, 11)
"""Lengths of two texts that the same code must do for."""

RECOMPILE_LIMIT = 32
"""Maximum number of compilations for a model; beyond it, further ones run as they are. A kind of
block takes two, for one sequence and for several, and as many again where masks come and go."""

STACKED = (2, 1)
"""Numbers of states that are stacked in the trial, the larger first."""

Block = Callable[..., Any]
"""A function that is called as a block is."""


def compile_blocks(model: Model, notify: Notify | None = None) -> Model:
    """Return a model with compiled blocks, or as it is where they cannot be compiled.

    Parameters
    ----------
    model : Model
        A model that has been checked.
    notify : callable, optional
        Function that is called with a message when compilation begins, and with the reason where
        blocks are not compiled.

    Raises
    ------
    Refusal
        If weights are loaded for each call, or lie on several devices.
    """
    _check_places(model)
    # The same message is of interest once, whatever number of blocks it comes from.
    tell = cache(notify or str)
    tell("compiling blocks, which takes up to a minute")
    bare = [_without_wrappers(block._module, {}) for block in model.blocks]
    try:
        if _counts_tokens(model, bare):
            tell("blocks are not compiled (their code goes token by token); they run as they are")
            return model
        run = _compiler(BACKEND)
        worst = numerics.largest(_try_out(model, [partial(run, block) for block in bare]))
    except Exception as error:  # whatever a compiler raises
        if is_out_of_memory(error):
            raise
        tell(f"blocks are not compiled ({_reason(error)}); they run as they are")
        return model
    tolerance = TOLERANCE * max(_epsilon(model.identity["dtype"]), _epsilon("float32"))
    if not worst <= tolerance:
        tell(
            f"blocks are not compiled: they would give other numbers, off by {worst:.2g}, which is "
            f"more than {tolerance:.2g}; they run as they are"
        )
        return model
    return replace(model, compiled=tuple(_with_retreat(run, block, tell) for block in bare))


def _check_places(model: Model) -> None:
    """Refuse blocks whose weights are elsewhere when they are called."""
    for block in model.blocks:
        if any("_hf_hook" in vars(part) for part in block._module.modules()):
            raise Refusal(
                f"accelerate places the weights of {model.name}, and compiled blocks need weights "
                "that stay on one device: leave out `compile`"
            )


def _without_wrappers(module: Module, copies: dict[int, Module]) -> Module:
    """Return a copy of a module that shares all but its submodules, without nnsight's wrappers.

    Parameters
    ----------
    module : Module
        A module that nnsight has wrapped.
    copies : dict of int to Module
        Copies made so far, by the identity of their original, which is filled.
    """
    if id(module) not in copies:
        copies[id(module)] = copy = object.__new__(class_of(module))
        # The wrapper stands on the module, in front of the forward method of its class.
        vars(copy).update({key: value for key, value in vars(module).items() if key != "forward"})
        inside = {}
        for name, part in module._modules.items():
            inside[name] = None if part is None else _without_wrappers(part, copies)
        vars(copy)["_modules"] = inside
    return copies[id(module)]


def _call(block: Module, hidden: Tensor, *rest: Any, **named: Any) -> Any:
    """Call a block. Compiled code belongs to the function, which must be ours alone."""
    return block(hidden, *rest, **named)


def _compiler(backend: Any) -> Block:
    """Return a function that compiles a block when it is first called with it."""
    # Torch's own types leave these two out.
    limits: dict[str, Any] = {"recompile_limit": RECOMPILE_LIMIT, "isolate_recompiles": True}
    compiled: Block = torch.compile(_call, backend=backend, dynamic=True, **limits)
    return compiled


def _counts_tokens(model: Model, blocks: Sequence[Module]) -> bool:
    """Whether another number of tokens takes other code, as where a loop over them is unrolled."""
    graphs = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    run, counts = _compiler(count), []
    for length in SHORT_TEXTS:
        _try_out(model, [partial(run, block) for block in blocks], length)
        counts.append(len(graphs))
    return counts[1] > counts[0]


def _try_out(model: Model, blocks: Sequence[Block], length: int = TRIAL_TOKENS) -> list[float]:
    """Return how far the outputs of other blocks are from those of the model's, on a text.

    Returns
    -------
    list of float
        For every block and number of stacked states, the largest error of a feature over the
        largest feature of its token.
    """
    length = min(length, model.context or length)
    text = (torch.arange(2 * length, device=model.device) * 5 + 1) % model.vocabulary
    two, grows, errors = text.reshape(2, length), model.grows, block_errors
    own, norms, head = model.blocks, model.norms, model.head
    with model.computing(), model.traced.trace(two, use_cache=False):
        states, contexts = block_calls.enter(own)
        states.append(norms[0].input if norms else head.input)
        block_calls.pass_over(head)
        # As in a run: code for a mask that is one row, repeated, is other code.
        contexts = block_calls.share(contexts, len(two))
        found = nnsight.save(errors(states, contexts, blocks, grows))
    return list(found)


def block_errors(
    states: Sequence[Tensor], contexts: Sequence[Any], blocks: Sequence[Block], grows: Any
) -> list[float]:
    """Return the errors of blocks on the states of the clean run; see `_try_out`."""
    errors = []
    for copies in STACKED:
        for index, block in enumerate(blocks):
            context = block_calls.widen(contexts[index], len(states[index]), copies, grows)
            output = block_calls.call(block, torch.cat([states[index]] * copies), context)
            clean = torch.cat([states[index + 1]] * copies)
            miss = (output - clean).float().abs().amax(-1) / clean.float().abs().amax(-1)
            # NaN is the largest error, which no tolerance allows.
            errors.append(float(miss.max()))
    return errors


def _with_retreat(run: Block, block: Module, tell: Notify) -> Block:
    """Return a compiled block that runs as it is from where it cannot be compiled again.

    The trial cannot have every mask that a run meets.
    """
    failed: list[str] = []

    def called(hidden: Tensor, *rest: Any, **named: Any) -> Any:
        if not failed:
            try:
                return run(block, hidden, *rest, **named)
            except TorchDynamoException as error:
                if is_out_of_memory(error):
                    raise
                failed.append(_reason(error))
                tell(f"a block cannot be compiled again ({failed[0]}); it runs as it is")
        return _call(block, hidden, *rest, **named)

    return called


def _reason(error: BaseException) -> str:
    """Return the first sentence of torch's compiler, or the message of what else was raised."""
    return first_line(error) if isinstance(error, TorchDynamoException) else last_line(error)


def _epsilon(dtype: str) -> float:
    """Return the distance from 1 to the next larger number of a type."""
    return torch.finfo(getattr(torch, dtype)).eps
