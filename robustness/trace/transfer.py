"""Moves between devices: few at a time, since a device is waited for at each.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

WITHOUT_FLOAT64 = ("mps",)
"""Kinds of devices that have no float64."""

HOST = torch.device("cpu")
"""Where results go."""


def place_of_sums(device: torch.device) -> torch.device:
    """Return where sums in float64 of what is on a device are taken: there, or on the CPU."""
    return HOST if device.type in WITHOUT_FLOAT64 else device


def together(tensors: Mapping[Any, Tensor], device: torch.device) -> dict[Any, Tensor]:
    """Return tensors on a device: a single copy for all of one type that are on another device."""
    alike: dict[Any, list[Any]] = {}
    for name, tensor in tensors.items():
        if tensor.device != device:
            alike.setdefault((tensor.device, tensor.dtype), []).append(name)
    moved = dict(tensors)
    for names in alike.values():
        flat = torch.cat([tensors[name].flatten() for name in names]).to(device)
        parts = flat.split([tensors[name].numel() for name in names])
        for name, part in zip(names, parts):
            # A copy, since a view would take the whole along wherever it is sent.
            moved[name] = part.view(tensors[name].shape).clone()
    return moved
