"""The rules of a real device: which tensors may meet, and of which type they may be."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pretended.log import LOG, TO_DEVICE

aten = torch.ops.aten

KINDS = ("cuda", "mps")
"""Kinds of devices that are pretended."""

FREE = {aten._to_copy.default, aten.copy_.default, aten.record_stream.default}
"""Operations whose tensors may be on any devices."""

INDEXING = {aten.index.Tensor, aten._unsafe_index.Tensor}
INDEXED_WRITING = {
    aten.index_put.default,
    aten.index_put_.default,
    aten._unsafe_index_put.default,
    aten._index_put_impl_.default,
}

TAKES_SCALARS = {
    aten.fill_.Tensor,
    aten.fill.Tensor,
    aten.masked_fill.Tensor,
    aten.masked_fill_.Tensor,
    aten.where.self,
    *INDEXED_WRITING,
}
"""Operations besides the elementwise ones that take a number which is a tensor on the CPU."""

READS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
}
"""Operations whose result, or its size, the host has to wait for."""

WIDE = {torch.float64, torch.complex128}


def with_index(device: torch.device | str | None) -> torch.device | None:
    """Return a device with its number, as tensors have it."""
    if device is None:
        return None
    device = torch.device(device)
    if device.type in KINDS and device.index is None:
        return torch.device(device.type, 0)
    return device


def meeting_place(func: Any, args: Sequence[Any], tensors: Sequence[Tensor]) -> torch.device:
    """Return the device on which an operation runs, and refuse tensors of different devices."""
    if func in FREE:
        return tensors[0].device
    if func in INDEXING or func in INDEXED_WRITING:
        _check_indices(args[0].device, [index for index in args[1] if index is not None])
        tensors = [args[0], *(value for value in args[2:3] if isinstance(value, Tensor))]
    takes_scalars = torch.Tag.pointwise in func.tags or func in TAKES_SCALARS
    place = tensors[0].device
    moveable = _is_number(tensors[0]) and takes_scalars
    for tensor in tensors[1:]:
        if tensor.device == place:
            moveable = moveable and _is_number(tensor)
        elif moveable:
            place, moveable = tensor.device, _is_number(tensor)
        elif not (takes_scalars and _is_number(tensor)):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{place} and {tensor.device}! (when checking {func})"
            )
    return place


def _is_number(tensor: Tensor) -> bool:
    """Whether a tensor is a number on the CPU, which travels with the call of an operation."""
    return tensor.dim() == 0 and tensor.device.type == "cpu"


def _check_indices(device: torch.device, indices: Iterable[Tensor]) -> None:
    """Note indices that are copied to the device, and those whose number the host reads."""
    for index in indices:
        if index.device == device:
            continue
        if index.device.type != "cpu":
            raise RuntimeError(
                "indices should be either on cpu or on the same device as the indexed tensor "
                f"({device})"
            )
        LOG.add(TO_DEVICE, "an index")


def check_type(device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a type that a device does not have."""
    if device.type == "mps" and dtype in WIDE:
        raise TypeError(
            "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support "
            "float64. Please use float32 instead."
        )
