"""The clean pass of a half-precision model, as it runs and in float32 arithmetic.

Both have the same weights. In the float32 pass the weights of a module are float32 only while the
module runs, so that memory needs room for one more block, and no second model.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from robustness.models.model import Model
from robustness.trace import numerics


class _Reached(Exception):
    """The pass has reached the head, whose logits of a whole text would not fit into memory."""


def final_states(model: Model, tokens: Tensor, *, wide: bool) -> Tensor:
    """Return the final states of a clean pass, as the head receives them.

    Parameters
    ----------
    model : Model
        An opened model with all of its weights in memory.
    tokens : int64 tensor of shape (sequence, token)
        On the model's device.
    wide : bool
        Whether the pass is in float32 arithmetic.

    Returns
    -------
    tensor of shape (sequence, token, width)
        Float32 if `wide`, and otherwise of the model's own type.

    Raises
    ------
    RuntimeError
        If a module of the model takes no float32, or memory runs out.
    """
    states: list[Tensor] = []

    def keep(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append(next(iter((*args, *kwargs.values()))))
        raise _Reached

    module = model.traced._module
    with model.computing(), ExitStack() as stack:
        handle = model.head._module.register_forward_pre_hook(keep, with_kwargs=True)
        stack.callback(handle.remove)
        if wide:
            stack.enter_context(_widened_for_calls(model))
        try:
            module(input_ids=tokens, use_cache=False)
        except _Reached:
            pass
    return states[0]


@contextmanager
def _widened_for_calls(model: Model) -> Iterator[None]:
    """Hold the weights of every module in float32 whenever it is called."""
    blocks = [block._module for block in model.blocks]
    units = [list(block.modules()) for block in blocks]
    inside = {part for unit in units for part in unit}
    for part in model.traced._module.modules():
        if part not in inside and (part._parameters or part._buffers):
            units.append([part])
    with ExitStack() as stack:
        for unit in units:
            _widen_for_calls(unit, stack)
        yield


def _widen_for_calls(unit: list[Module], outer: ExitStack) -> None:
    """Register hooks that widen some modules for every call of the first; `outer` removes them."""
    during = ExitStack()

    def before(module: Module, args: Any) -> None:
        during.enter_context(_widened(unit))

    def after(module: Module, args: Any, output: Any) -> None:
        during.close()

    # After an error in the call, too.
    outer.enter_context(during)
    outer.callback(unit[0].register_forward_pre_hook(before).remove)
    outer.callback(unit[0].register_forward_hook(after).remove)


@contextmanager
def _widened(modules: Iterable[Module]) -> Iterator[None]:
    """Hold the weights and buffers of modules, not of those inside them, in float32."""
    kept: list[tuple[dict[str, Any], str, Tensor]] = []
    try:
        for module in modules:
            of_module: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for tensors in of_module:
                for name, tensor in tensors.items():
                    if tensor is not None and _is_half(tensor):
                        kept.append((tensors, name, tensor))
                        tensors[name] = _wide(tensor)
        yield
    finally:
        for tensors, name, tensor in kept:
            tensors[name] = tensor


def _is_half(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.float16, torch.bfloat16)


def _wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 or wider, a parameter if it is one."""
    wide = numerics.precise(tensor.detach())
    return Parameter(wide, requires_grad=False) if isinstance(tensor, Parameter) else wide
