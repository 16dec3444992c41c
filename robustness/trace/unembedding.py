"""From what a head gives to logits: some models scale it, some cap it softly, or both.

    logits = cap · tanh(scale · z / cap)

Which, is found out by putting numbers of every size in the place of `z`.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustness.trace import numerics

if TYPE_CHECKING:
    from robustness.trace.types import Head, Squash

ROUNDING = 16
"""Digits of their type by which logits may be off."""

LARGEST = 15
"""The power of two that is large for a cap, and that half precision still has."""


def trial(like: Tensor) -> Tensor:
    """Return numbers of both signs and every size, (sequence, token, number), as `like` is typed.

    The first is 1, the last the largest.
    """
    powers = [2.0**power for power in (*range(LARGEST + 1), *range(-1, -7, -1), LARGEST)]
    numbers = [sign * power for sign in (1, -1) for power in powers]
    found = torch.tensor([*numbers, powers[-1]], dtype=like.dtype, device=like.device)
    return found.expand(*like.shape[:2], -1).clone()


def fit(given: Tensor, made: Tensor, numbers: Sequence[float]) -> dict[str, Any]:
    """Find scale and cap from what `trial` gave, (…, number), and the logits a model makes of it.

    Parameters
    ----------
    given, made : tensor of shape (…, number)
    numbers : sequence of float
        Numbers of the configuration, one of which scale, one over it, or cap is if these are as
        close as the type of the logits can tell.

    Returns
    -------
    dict
        `scale`; `cap`, or None; `off`, by how much these miss the logits, relative to them.
    """
    # On the CPU first: not every device has float64.
    z, logits = (values.flatten(0, -2)[0].cpu().double() for values in (given, made))
    known = [*numbers, *(1 / number for number in numbers)]
    digit = torch.finfo(made.dtype).eps
    scale, most = (
        next((number for number in known if abs(number - found) <= digit * abs(found)), found)
        for found in (float(logits[0]), float(logits[-1]))
    )
    tries: list[Squash] = [(scale, None)]
    if 0 < abs(scale) < most:
        tries += [(1.0, most), (most * float(z.new_tensor(scale / most).atanh()), most)]
    found: list[tuple[float, Squash]] = []
    for one in tries:
        miss = (apply(z, one) - logits).abs() / logits.abs().clamp(min=1e-30)
        found.append((float(miss.max()), one))
    # The simplest that is right.
    right = [each for each in found if each[0] <= ROUNDING * digit]
    off, (scale, cap) = (right or sorted(found, key=lambda each: each[0]))[0]
    return {"scale": scale, "cap": cap, "off": off}


def apply(z: Tensor, squash: Squash) -> Tensor:
    """Return the logits, of the shape of what the head gives."""
    scale, cap = squash
    if scale != 1.0:
        z = z * scale
    return z if cap is None else cap * torch.tanh(z / cap)


def predictor(head: Head, squash: Squash) -> Head:
    """Return a function from states to logits, in float32 or wider."""

    def predict(states: Tensor) -> Tensor:
        return apply(numerics.precise(head(states)), squash)

    return predict
