"""Tensors of a device that is not there, and what becomes of every operation on them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from pretended import rules
from pretended.log import BETWEEN, LOG, READ, TO_DEVICE, TO_HOST
from pretended.memory import MEMORY

aten = torch.ops.aten


class PretendedTensor(Tensor):
    """A tensor that says it is on a device, and holds its numbers on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    held: Tensor

    @staticmethod
    def __new__(
        cls, held: Tensor, device: torch.device | None = None, requires_grad: bool = False
    ) -> Tensor:
        # Accelerate makes parameters by the type of those that there are.
        if device is None or isinstance(held, PretendedTensor):
            return torch.nn.Parameter(held, requires_grad)
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device,
        )
        made.held = held
        made.taken = MEMORY.take(held)
        return made

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return execute(func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"{self.held} on {self.device}"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    # Libraries tell tensors that share their memory by its address.
    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    # Torch moves the parameters of modules that can be taken apart and put together again.
    def __tensor_flatten__(self) -> tuple[list[str], torch.device]:
        return ["held"], self.device

    @staticmethod
    def __tensor_unflatten__(
        parts: dict[str, Tensor], device: torch.device, size: Any, stride: Any
    ) -> "PretendedTensor":
        return PretendedTensor(parts["held"], device)


class Pretence(TorchDispatchMode):
    """While it is on, tensors can be made on a device that is not there."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return execute(func, args, kwargs or {})


def execute(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Execute an operation as a device would, or refuse it."""
    tensors = _tensors([*args, *kwargs.values()])
    pretended = {id(one.held): one for one in tensors if isinstance(one, PretendedTensor)}
    asked = rules.with_index(kwargs.get("device"))
    if not pretended and (asked is None or asked.type not in rules.KINDS):
        return func(*args, **kwargs)
    device = rules.meeting_place(func, args, tensors) if tensors else asked
    _note(func, args, tensors, device, asked)
    device = asked or device
    # Asked for without being made: float64 would go through the device on its way to the host.
    wanted = kwargs.get("dtype") or (args[0].dtype if tensors and func in rules.FREE else None)
    for place in {device, *(one.device for one in tensors if func is aten._to_copy.default)}:
        if wanted is not None:
            rules.check_type(place, wanted)
    held = _computed(func, device, _held(args), _held_by_name(kwargs))
    if torch.Tag.inplace_view in func.tags:
        # What has changed is the shape, which the tensor outside has too.
        with no_dispatch():
            func(*args, **kwargs)
    # What is written into a tensor on the CPU stays there.
    if func is aten.copy_.default:
        return args[0]
    return _wrapped(held, device, pretended) if device.type in rules.KINDS else held


def _wrapped(out: Any, device: torch.device, known: dict[int, PretendedTensor]) -> Any:
    """Return what was computed as tensors of a device: `known` ones where they are the same."""
    # No function within `execute`, which would be a circle that keeps its tensors.
    if isinstance(out, (tuple, list)):
        return type(out)(_wrapped(one, device, known) for one in out)
    if not isinstance(out, Tensor):
        return out
    if id(out) in known:
        return known[id(out)]
    rules.check_type(device, out.dtype)
    return PretendedTensor(out, device)


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    """Return the tensors of a call, those in lists too."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found += [inner for inner in value if isinstance(inner, Tensor)]
    return found


def _held(value: Any) -> Any:
    """Return what the CPU computes with."""
    if isinstance(value, PretendedTensor):
        return value.held
    if isinstance(value, (tuple, list)):
        return type(value)(map(_held, value))
    return value


def _held_by_name(kwargs: dict[str, Any]) -> dict[str, Any]:
    changed = {name: _held(value) for name, value in kwargs.items()}
    asked = rules.with_index(changed.get("device"))
    if asked is not None and asked.type in rules.KINDS:
        changed["device"] = torch.device("cpu")
    if changed.get("pin_memory"):
        changed["pin_memory"] = False
    return changed


def _note(
    func: Any,
    args: Sequence[Any],
    tensors: Sequence[Tensor],
    device: torch.device,
    asked: torch.device | None,
) -> None:
    """Log a copy or a read."""
    if func is aten._to_copy.default:
        source, target = device, asked or device
    elif func is aten.copy_.default:
        source, target = args[1].device, args[0].device
    else:
        by_mask = func in rules.INDEXING or func in rules.INDEXED_WRITING
        if func in rules.READS or (by_mask and _has_mask(args[1])):
            LOG.add(READ, func)
        return
    if source == target:
        return
    kind = TO_HOST if target.type == "cpu" else TO_DEVICE if source.type == "cpu" else BETWEEN
    # A number on the CPU is written into a tensor without a copy: it travels with the call.
    if not (func is aten.copy_.default and kind == TO_DEVICE and args[1].dim() == 0):
        LOG.add(kind, func)


def _has_mask(indices: Sequence[Tensor | None]) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _computed(func: Any, device: torch.device, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute on the CPU, also what only a device can."""
    if device.type == "cuda" and func in _WIDENING:
        return _WIDENING[func](*args, **kwargs)
    if (
        func is aten.histc.default
        and device.type in rules.KINDS
        and not args[0].is_floating_point()
    ):
        return func(args[0].float(), *args[1:], **kwargs).to(args[0].dtype)
    return func(*args, **kwargs)


def _widened(product: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a product of half-precision numbers that is summed in float32, and stays so."""

    def compute(*args: Any, **scales: Any) -> Tensor:
        *factors, wanted = args
        types = {factor.dtype for factor in factors[-2:]}
        if len(types) > 1 or not types <= {torch.bfloat16, torch.float16}:
            raise RuntimeError("out_dtype is only supported for factors of half precision")
        if wanted != torch.float32:
            raise RuntimeError("out_dtype must be float32 where it is not the factors' own")
        return product(*(factor.float() for factor in factors), **scales)

    return compute


_WIDENING = {
    aten.mm.dtype: _widened(torch.mm),
    aten.bmm.dtype: _widened(torch.bmm),
    aten.addmm.dtype: _widened(torch.addmm),
    aten.baddbmm.dtype: _widened(torch.baddbmm),
}
