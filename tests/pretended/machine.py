"""A machine with devices that are not there: what torch and its users ask about them."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import _disable_current_modes
from transformers import modeling_utils

from pretended import guard
from pretended.log import LOG, Log
from pretended.memory import LARGE, MEMORY
from pretended.tensors import Pretence, PretendedTensor

_attend = torch.nn.functional.scaled_dot_product_attention
_get_item, _set_item, _to = Tensor.__getitem__, Tensor.__setitem__, Tensor.to


@contextmanager
def machine(kind: str = "cuda", devices: int = 1, memory: int = LARGE) -> Iterator[Log]:
    """Pretend that this machine has devices of a kind, `cuda` or `mps`; their log is empty.

    All of them together have `memory` bytes.
    """
    guard.install()
    LOG.clear()
    MEMORY.begin(kind, memory)
    # Torch keeps a list of what `with torch.device(...)` changes, which is to have its own names.
    _device_constructors()
    patches = [
        (torch, "tensor", partial(_made, torch.tensor)),
        (torch, "as_tensor", partial(_made, torch.as_tensor)),
        (torch, "Event", _Event),
        (Tensor, "to", _mover(kind)),
        (Tensor, "pin_memory", lambda tensor, *device: tensor),
        (torch.nn.functional, "scaled_dot_product_attention", _attention),
        (Tensor, "__getitem__", lambda tensor, index: _get_item(tensor, _indices(tensor, index))),
        (
            Tensor,
            "__setitem__",
            lambda tensor, index, value: _set_item(tensor, _indices(tensor, index), value),
        ),
    ]
    asked: dict[str, Any] = _CUDA | {"device_count": lambda: devices}
    if kind == "cuda":
        patches += [(torch.cuda, name, answer) for name, answer in asked.items()]
    else:
        patches += [
            (torch.backends.mps, name, lambda: True) for name in ("is_available", "is_built")
        ]
        patches += [(torch.mps, name, answer) for name, answer in _MPS.items()]
    general = {
        "is_available": lambda: True,
        "current_accelerator": lambda *check: torch.device(kind),
        "device_count": lambda: devices,
        "current_device_index": lambda: 0,
    }
    patches += [(torch.accelerator, name, answer) for name, answer in general.items()]
    # It takes memory before weights do, on devices that `torch.device` has numbers for.
    patches.append((modeling_utils, "caching_allocator_warmup", lambda *given: None))
    with ExitStack() as stack:
        for owner, name, value in patches:
            stack.enter_context(mock.patch.object(owner, name, value))
        _forget_what_was_asked()
        stack.callback(_forget_what_was_asked)
        stack.enter_context(Pretence())
        yield LOG


class _Event:
    """A mark in a device's work, which is always done at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def record(self, stream: Any = None) -> None:
        """Mark the place."""

    def synchronize(self) -> None:
        """Wait for it."""

    def query(self) -> bool:
        """Whether it is reached."""
        return True


_STATE = torch.zeros(16, dtype=torch.uint8)

_CUDA = {
    "is_available": lambda: True,
    "current_device": lambda: 0,
    "set_device": lambda device: None,
    "empty_cache": MEMORY.empty_cache,
    "synchronize": lambda *device: None,
    "_lazy_init": lambda: None,
    "memory_allocated": lambda *device: MEMORY.used,
    "memory_reserved": lambda *device: MEMORY.used,
    "max_memory_allocated": lambda *device: 0,
    "mem_get_info": lambda *device: (MEMORY.free, MEMORY.most),
    "get_rng_state": lambda *device: _STATE,
    "set_rng_state": lambda *state: None,
    "get_device_capability": lambda *device: (9, 0),
    "get_device_properties": lambda *device: SimpleNamespace(
        total_memory=LARGE, major=9, minor=0, multi_processor_count=132, name="pretended"
    ),
    "is_bf16_supported": lambda *including: True,
}

_MPS = {
    "empty_cache": MEMORY.empty_cache,
    "synchronize": lambda: None,
    "get_rng_state": lambda: _STATE,
    "set_rng_state": lambda state: None,
    "current_allocated_memory": lambda: MEMORY.used,
    "driver_allocated_memory": lambda: MEMORY.used,
    "recommended_max_memory": lambda: MEMORY.most,
}


def _forget_what_was_asked() -> None:
    """Clear the answers that libraries keep: which devices there are."""
    for name in ("transformers.utils.import_utils", "accelerate.utils.imports"):
        for function in vars(sys.modules.get(name, guard)).values():
            if hasattr(function, "cache_clear") and function is not guard.install:
                function.cache_clear()


def _made(
    make: Callable[..., Tensor],
    data: Any,
    dtype: torch.dtype | None = None,
    device: Any = None,
    **options: Any,
) -> Tensor:
    """Make a tensor of numbers on the CPU first, where torch makes it without asking anyone."""
    if isinstance(data, PretendedTensor):
        return data.to(device or data.device, dtype or data.dtype)
    if torch.device(device or "cpu").type == "cpu":
        return make(data, dtype=dtype, device=device, **options)
    return make(data, dtype=dtype, **options).to(device)


def _mover(kind: str) -> Callable[..., Tensor]:
    """Return `Tensor.to` for which a number is a device, and which works in every thread.

    Elsewhere a number is none: `torch.device(0)` asks for what no tensor can pretend.
    """

    def to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        asked = args[0] if args else kwargs.get("device")
        if isinstance(asked, int):
            asked = f"{kind}:{asked}"
        elif not isinstance(asked, (str, torch.device)):
            return _to(tensor, *args, **kwargs)
        if args:
            args = (asked, *args[1:])
        else:
            kwargs["device"] = asked
        with Pretence():
            return _to(tensor, *args, **kwargs)

    return to


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Attention as one operation, which is how a device has it."""
    if not isinstance(query, PretendedTensor):
        return _attend(query, key, value, *args, **kwargs)
    given = [query, key, value, *args, *kwargs.values()]
    devices = {str(one.device) for one in given if isinstance(one, Tensor)}
    if len(devices) > 1:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {devices}")

    def held(one: Any) -> Any:
        return one.held if isinstance(one, PretendedTensor) else one

    with _disable_current_modes():
        out = _attend(*map(held, given[: 3 + len(args)]), **{n: held(v) for n, v in kwargs.items()})
    return PretendedTensor(out, query.device)


def _indices(tensor: Tensor, index: Any) -> Any:
    """Return indices with lists as tensors on the device, as torch makes them of lists."""
    if not isinstance(tensor, PretendedTensor):
        return index
    if isinstance(index, tuple):
        return tuple(_indices(tensor, one) for one in index)
    return torch.tensor(index).to(tensor.device) if isinstance(index, list) else index
