"""Records of a forward pass: which modules it calls, and which reads the output of another."""

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Dropout, Identity, Module

PASSIVE = (Dropout, Identity)
"""Modules that return their input."""


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module.

    The tensors that it read and wrote are kept, so that no other tensor takes their id.
    """

    path: str
    """Path of the module that is called."""
    caller: str
    """Path of the module that makes the call; empty for the model itself."""
    read: Tensor | None
    """The first tensor among its arguments."""
    handed: int | None
    """Position, among its further arguments, of another tensor of the same shape: some sublayers
    take the residual stream as well, and add their output to it themselves."""
    wrote: Tensor | None
    """The tensor that it returned, or the first one of several."""
    began: int
    """Position of its beginning among the beginnings and ends of all calls."""
    ended: int
    """Position of its end among them."""


def record(module: Any, tokens: Sequence[int]) -> list[Call]:
    """Run a model on a text and return its calls of modules, in the order in which they end.

    A model without weights runs on fake tensors, which computes nothing. Weights that accelerate
    keeps elsewhere are loaded by its own hooks.
    """
    calls: list[Call] = []
    running: list[tuple[str, Tensor | None, int | None, int]] = []
    clock = iter(range(10**9))

    def begin(path: str) -> Any:
        def hook(_: Module, args: Any, kwargs: dict[str, Any]) -> None:
            given = (*args, kwargs.get("hidden_states"), *kwargs.values())
            read = _first(given)
            handed = _position_of_alike(args[1:], read)
            running.append((path, read, handed, next(clock)))

        return hook

    def end(_: Module, args: Any, output: Any) -> None:
        path, read, handed, began = running.pop()
        caller = running[-1][0] if running else ""
        wrote = _first(output if isinstance(output, (tuple, list)) else (output,))
        calls.append(Call(path, caller, read, handed, wrote, began, next(clock)))

    mode: Any = nullcontext()
    device = module.device
    # Offloaded weights are on `meta` between calls; accelerate moves the tokens to where it loads.
    if any(hasattr(part, "_hf_hook") for part in module.modules()):
        device = torch.device("cpu") if device.type == "meta" else device
    with ExitStack() as stack:
        if device.type == "meta":
            mode = FakeTensorMode(allow_non_fake_inputs=True)
            # Other implementations of experts read values, which fake tensors do not have, or
            # take some types only.
            stack.callback(module.set_experts_implementation, module.get_experts_implementation())
            module.set_experts_implementation("batched_mm")
        for path, part in module.named_modules():
            if path and not isinstance(part, PASSIVE):
                for handle in (
                    part.register_forward_pre_hook(begin(path), with_kwargs=True),
                    part.register_forward_hook(end),
                ):
                    stack.callback(handle.remove)
        stack.callback(module.train, module.training)
        module.eval()
        with torch.no_grad(), mode:
            module(input_ids=torch.tensor([tokens], device=device), use_cache=False)
    return calls


def trial_text(config: Any) -> list[int]:
    """Return token ids of a short text that any model with this configuration takes."""
    length = min(7, getattr(config, "max_position_embeddings", None) or 7)
    return [(5 * token + 1) % config.vocab_size for token in range(length)]


def chains(calls: Sequence[Call]) -> list[list[Call]]:
    """Return the chains of modules in which each reads the output of the one before, by last call.

    The output must be read as it is: a module that reads its sum with something else begins a chain
    of its own. Chains may share their beginning.
    """
    writer = {}
    for call in calls:
        # A sublayer that adds to the residual stream itself returns the stream: what reads that
        # belongs to the next sublayer.
        if call.wrote is not None and call.handed is None:
            writer[id(call.wrote)] = call
    read = {id(call.read) for call in calls}
    complete = []
    for last in calls:
        if id(last.wrote) in read and id(last.wrote) in writer:
            continue
        chain = [last]
        # A module that returns its input reads its own output, which would never end.
        while (before := writer.get(id(chain[0].read))) is not None and before not in chain:
            chain.insert(0, before)
        complete.append(chain)
    return complete


def _position_of_alike(values: Sequence[Any], read: Tensor | None) -> int | None:
    """Return the position of the first tensor that has the shape of another, or None."""
    for position, value in enumerate(values):
        if isinstance(value, Tensor) and read is not None and value.shape == read.shape:
            return position
    return None


def _first(values: Any) -> Tensor | None:
    return next((value for value in values if isinstance(value, Tensor)), None)
