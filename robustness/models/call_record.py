"""Records of a forward pass: which modules it calls, and which reads what another has written."""

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Dropout, Identity, Module

PASSIVE = (Dropout, Identity)
"""Modules that hand on what they are given."""


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module.

    What it read and wrote is kept, so that no other tensor takes its id.
    """

    path: str
    caller: str
    """The module that was being run; empty for the model itself."""
    read: Tensor | None
    """The first tensor among its arguments."""
    handed: int | None
    """Place, among its further arguments, of another tensor of the same shape: some sublayers are
    handed the residual stream, and add what they write to it themselves."""
    wrote: Tensor | None
    """What it returned, or the first part of it."""
    began: int
    ended: int
    """Its place among the beginnings and ends of all calls, as that of its beginning is."""


def record(module: Any, tokens: Sequence[int]) -> list[Call]:
    """Run a model on a text and return its calls of modules, in the order in which they end.

    A model without weights is run without computing anything; one whose weights accelerate keeps
    elsewhere has them loaded.
    """
    calls: list[Call] = []
    running: list[tuple[str, Tensor | None, int | None, int]] = []
    clock = iter(range(10**9))

    def begin(path: str) -> Any:
        def hook(_: Module, args: Any, kwargs: dict[str, Any]) -> None:
            given = (*args, kwargs.get("hidden_states"), *kwargs.values())
            read = _first(given)
            alike = [_alike(value, read) for value in args[1:]]
            handed = alike.index(True) if True in alike else None
            running.append((path, read, handed, next(clock)))

        return hook

    def end(_: Module, args: Any, output: Any) -> None:
        path, read, handed, began = running.pop()
        caller = running[-1][0] if running else ""
        wrote = _first(output if isinstance(output, (tuple, list)) else (output,))
        calls.append(Call(path, caller, read, handed, wrote, began, next(clock)))

    mode: Any = nullcontext()
    device = module.device
    if any(hasattr(part, "_hf_hook") for part in module.modules()):
        device = torch.device("cpu") if device.type == "meta" else device
    with ExitStack() as stack:
        if device.type == "meta":
            mode = FakeTensorMode(allow_non_fake_inputs=True)
            # The other ways of computing experts ask for numbers, or for some types of them.
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
    """Return the ways through modules that hand on what they write, by where each ends.

    A module belongs to the same way as the one whose output is, itself and not a sum with something
    else, what it reads. A way may share its beginning with others.
    """
    writer = {
        id(call.wrote): call for call in calls if call.wrote is not None and call.handed is None
    }
    taken = {id(call.read) for call in calls}
    found = []
    for last in calls:
        if id(last.wrote) in taken and id(last.wrote) in writer:
            continue
        chain = [last]
        while (before := writer.get(id(chain[0].read))) is not None and before not in chain:
            chain.insert(0, before)
        found.append(chain)
    return found


def _alike(value: Any, read: Tensor | None) -> bool:
    return isinstance(value, Tensor) and read is not None and value.shape == read.shape


def _first(values: Any) -> Tensor | None:
    return next((value for value in values if isinstance(value, Tensor)), None)
