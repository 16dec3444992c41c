"""Placement of weights: devices, device maps, and directories for weights kept on the disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module

from robustness.errors import Refusal, first_line
from robustness.models import checkpoint


def choose_device(device: str | None) -> str:
    """Return the device to compute on: the given one, the first GPU, or the CPU."""
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(chosen)
    return chosen


def usual_dtype(device: str) -> str:
    """Return the type of weights that is the default on a device.

    A GPU is made for half precision, which most checkpoints have; a CPU mostly is not.
    """
    return "float32" if device.startswith("cpu") else "auto"


def computing(device_map: str | Mapping[str, int | str]) -> str:
    """Return a device that computes with the weights of a device map."""
    if isinstance(device_map, str):
        on_gpu = torch.cuda.is_available() and device_map not in {"cpu", "disk"}
        return "cuda" if on_gpu else "cpu"
    places = [f"cuda:{place}" if isinstance(place, int) else place for place in device_map.values()]
    return next((place for place in places if place not in {"cpu", "disk"}), "cpu")


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have."""
    remedy = "give cpu, or leave it out"
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise Refusal(
            f"there is no device {device!r}: give cpu, cuda, cuda:1 or mps, or leave it out"
        ) from error
    if chosen.type == "meta":
        raise Refusal(f"device {device!r} cannot be used: nothing is computed there: {remedy}")
    # torch parses devices that the machine does not have; only using one shows whether it is there.
    try:
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise Refusal(
            f"device {device!r} cannot be used ({first_line(error)}): {remedy}"
        ) from error


def check_dtype(device: str, dtype: str) -> None:
    """Refuse a type of weights that a device lacks; MPS, for one, has no float64."""
    try:
        torch.empty(0, device=device, dtype=getattr(torch, dtype, None))
    except (RuntimeError, TypeError) as error:
        raise Refusal(f"device {device!r} has no {dtype}: give `dtype` float32") from error


def move(name: str, module: Module, device: str) -> Module:
    """Return a model on a device, and refuse one that does not fit there."""
    # The type of a checkpoint is known only now.
    check_dtype(device, str(module.dtype).removeprefix("torch."))
    try:
        return module.to(device)
    except RuntimeError as error:
        if "memory" not in str(error).lower():
            raise
        raise Refusal(
            f"{name} does not fit on {device} ({first_line(error)}): {checkpoint.LESS_MEMORY}"
        ) from error


def resolve_map(device_map: str | Mapping[str, int | str]) -> Any:
    """Return a device map as transformers takes it."""
    if isinstance(device_map, str):
        return {"": device_map} if device_map in {"cpu", "disk"} else device_map
    for where in set(device_map.values()) - {"cpu", "disk"}:
        check_device(f"cuda:{where}" if isinstance(where, int) else where)
    return dict(device_map)


def check_map(name: str, module: Module, device_map: str | Mapping[str, int | str]) -> None:
    """Refuse a device map of submodules that a model does not have."""
    if isinstance(device_map, str):
        return
    submodules = dict(module.named_modules())
    for part in device_map:
        if part not in submodules:
            raise Refusal(f"{name} has no part {part!r} that a device map could place")


def describe_map(device_map: str | Mapping[str, int | str]) -> str:
    """Return a device map as text, as files keep it."""
    if isinstance(device_map, str):
        return device_map
    return ", ".join(f"{part or 'all'}: {where}" for part, where in device_map.items())


def make_directory(offload: str | Path | None) -> Path | None:
    """Make the directory for weights on the disk, and refuse one that cannot be made."""
    if offload is None:
        return None
    try:
        Path(offload).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(
            f"`offload` {offload} cannot be made ({error.strerror}): give a directory to write to"
        ) from error
    return Path(offload)
