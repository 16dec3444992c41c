"""Scale and soft cap of logits: what some models make of the output of their head.

    logits = cap · tanh(scale · z / cap)

Both are found by replacing `z` with numbers of every size. On a server, the matrix of a head is
read where its weights are, and else made of what the head gives for rows of the identity.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustness.trace import numerics

if TYPE_CHECKING:
    from robustness.trace.types import Envoy, Head, HeadThere, Matrix, Squash

ROUNDING = 16
"""Relative error that logits may have, in units of the last place of their type."""

LARGEST = 15
"""Exponent of the largest power of two: large for a cap, and within half precision."""

ROWS_AT_ONCE = 256
"""Number of rows of the identity that the head is called on at once."""

BEYOND_BIAS = {"float64": 2.0**512}
"""Power of two beside which a bias is smaller than the last digit, by type."""

BEYOND_BIAS_ELSE = 2.0**64
"""Power of two beside which a bias is smaller than the last digit, of any other type."""


def trial(like: Tensor) -> Tensor:
    """Return numbers of both signs and every size, (sequence, token, number), typed as `like`.

    The first is 1, the last the largest.
    """
    exponents = (*range(LARGEST + 1), *range(-1, -7, -1), LARGEST)
    powers = [2.0**exponent for exponent in exponents]
    negative = [-power for power in powers]
    numbers = [*powers, *negative, powers[-1]]
    tried = torch.tensor(numbers, dtype=like.dtype, device=like.device)
    # A copy, since the model may change it in place and the elements of an expanded tensor are one.
    return tried.expand(*like.shape[:2], -1).clone()


def fit(given: Tensor, made: Tensor, numbers: Sequence[float]) -> dict[str, Any]:
    """Find the scale and the cap of a model's logits.

    Parameters
    ----------
    given : tensor of shape (…, number)
        Numbers in the place of the head's output, as from `trial`.
    made : tensor of shape (…, number)
        Logits that the model makes of them.
    numbers : sequence of float
        Numbers of the configuration. The scale is one of them, or one over it, and the cap is one
        of them, if these agree to the last place of the logits' type.

    Returns
    -------
    dict
        `scale`; `cap`, or None; `off`, the largest relative error of the logits under these.
    """
    # On the CPU first: not every device has float64.
    z, logits = (values.flatten(0, -2)[0].cpu().double() for values in (given, made))
    digit = torch.finfo(made.dtype).eps
    # The logit of 1 is the scale if there is no cap, and the last logit is the cap if there is one.
    scale = _configured(float(logits[0]), numbers, digit)
    most = _configured(float(logits[-1]), numbers, digit)
    candidates: list[Squash] = [(scale, None)]
    if 0 < abs(scale) < most:
        # With a cap, the logit of 1 is cap · tanh(scale / cap), which is solved for the scale.
        solved = most * float(z.new_tensor(scale / most).atanh())
        candidates += [(1.0, most), (solved, most)]
    errors = []
    for squash in candidates:
        misses = (apply(z, squash) - logits).abs() / logits.abs().clamp(min=1e-30)
        errors.append(float(misses.max()))
    best = errors.index(min(errors))
    # The first that is right, not the closest: candidates come in the order of their simplicity.
    for index, error in enumerate(errors):
        if error <= ROUNDING * digit:
            best = index
            break
    scale, cap = candidates[best]
    return {"scale": scale, "cap": cap, "off": errors[best]}


def _configured(measured: float, numbers: Sequence[float], digit: float) -> float:
    """Return the number or inverse that a measured value agrees with, or else the value itself."""
    inverses = [1 / number for number in numbers]
    for number in (*numbers, *inverses):
        if abs(number - measured) <= digit * abs(measured):
            return number
    return measured


def apply(z: Tensor, squash: Squash) -> Tensor:
    """Return the logits that a model makes of its head's output `z`, of the same shape."""
    scale, cap = squash
    if scale != 1.0:
        z = z * scale
    return z if cap is None else cap * torch.tanh(z / cap)


def predictor(head: Head, squash: Squash) -> Head:
    """Return a function from states to logits, in float32 or wider."""

    def predict(states: Tensor) -> Tensor:
        return apply(numerics.precise(head(states)), squash)

    return predict


def matrix_there(head: Envoy, there: HeadThere | None) -> Matrix | None:
    """Return the matrix of a head on a server, as it is; None where the head has to be called.

    It must be called in a trace, while the model runs.

    Parameters
    ----------
    head : Envoy
        The head.
    there : HeadThere, optional
        What is known of it; None for a head that is no matrix.
    """
    if there is None:
        return None
    weight, bias = head.weight, head.bias
    if weight.is_meta:
        if not there["worth"]:
            return None
        weight, bias = _made_matrix(head, there)
    elif not _is_plain(weight, there["shape"]):
        return None
    return {"weight": weight, "bias": bias, "centred": False, "squash": there["squash"]}


def _is_plain(weight: Tensor, shape: tuple[int, int]) -> bool:
    """Whether a matrix is whole, and its numbers are what the head multiplies."""
    # Several devices may have a share of a matrix each, and a quantised one has scales beside it.
    plain = type(weight) in (Tensor, torch.nn.Parameter) and tuple(weight.shape) == shape
    return plain and weight.dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def _made_matrix(head: Envoy, there: HeadThere) -> tuple[Tensor, Tensor | None]:
    """Return the matrix and the bias of a head that can only be called.

    Each product of a row of the identity has one term that is not zero, and so is exact. The rows
    are so large that rounding takes away the bias that is added to them.
    """
    width, kind = there["shape"][1], getattr(torch, there["dtype"])
    scale = 1.0
    if there["biased"]:
        scale = BEYOND_BIAS.get(there["dtype"], BEYOND_BIAS_ELSE)
    whole: Tensor | None = None
    for first in range(0, width, ROWS_AT_ONCE):
        rows = torch.zeros(min(ROWS_AT_ONCE, width - first), width, dtype=kind)
        rows.diagonal(first).fill_(scale)
        made = head(rows)
        if whole is None:
            whole = made.new_empty(width, made.shape[1])
        whole[first : first + len(made)] = made
    assert whole is not None
    if not there["biased"]:
        return whole.T, None
    whole /= scale
    return whole.T, head(torch.zeros(1, width, dtype=kind))[0]
