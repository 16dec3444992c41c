"""Changes of the residual stream, and of what a step adds to it, by factors and fitted maps.

All is computed in float32, or in the type of the stream or of the map if that is wider, and rounded
once; torch itself does so in `lerp` and in products with a number.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustness.trace import numerics

if TYPE_CHECKING:
    from robustness.trace.types import FittedMap


def times(hidden: Tensor, factor: float) -> Tensor:
    """Return a stream times a factor."""
    return hidden * factor


def through(hidden: Tensor, fitted: FittedMap) -> Tensor:
    """Return a stream h as h A + b."""
    matrix, offset = fitted
    # A stream may be of another type than the weights, as Mamba's is.
    out = hidden.to(matrix.dtype) @ matrix.to(hidden.device)
    if offset is not None:
        out = out + offset.to(hidden.device)
    return out.to(hidden.dtype)


def part_way(hidden: Tensor, leaving: Tensor, factor: float) -> Tensor:
    """Return h + factor · (leaving − h): exactly h for 0, and exactly what leaves for 1."""
    return torch.lerp(hidden.to(leaving.device), leaving, factor)


def plus_times(hidden: Tensor, added: Tensor, factor: float) -> Tensor:
    """Return h + factor · added."""
    # `torch.add` would round the factor to half precision.
    entering = numerics.precise(hidden.to(added.device))
    return (entering + factor * numerics.precise(added)).to(hidden.dtype)


def plus_through(hidden: Tensor, added: Tensor, fitted: FittedMap) -> Tensor:
    """Return h + added T."""
    matrix, _ = fitted
    change = added.to(matrix.dtype) @ matrix.to(added.device)
    return (hidden.to(added.device).to(matrix.dtype) + change).to(hidden.dtype)


def difference(hidden: Tensor, leaving: Tensor) -> Tensor:
    """Return what a block has added to a stream."""
    return numerics.precise(leaving) - numerics.precise(hidden.to(leaving.device))
