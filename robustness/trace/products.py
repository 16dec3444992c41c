"""Products of states and rows of the head's matrix, as exact as float32 sums of exact products.

The product of two bfloat16 numbers is exact in float32, and processors made for them multiply and
sum them so at many times the rate of float32. Rounding the sums to bfloat16 again, as a call of the
head does, would cost a readout its digits. States of more digits are sums of three bfloat16 numbers
of eight bits each, and have three products.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from typing import Any

import torch
from torch import Tensor

PARTS = 3
"""Number of bfloat16 numbers of 8 bits that sum up to a float32 number of 24 bits."""


def factors(states: Tensor, weight: Tensor) -> Tensor:
    """Return states as parts that `multiply` takes.

    Parameters
    ----------
    states : tensor of shape (row, width)
        States as the head receives them.
    weight : tensor of shape (token, width)
        Matrix of which rows are multiplied.

    Returns
    -------
    tensor of shape (part, row, width)
        Parts whose sum is the states. There is one part, unless the matrix is of bfloat16 numbers
        and the states have more digits.
    """
    if weight.dtype == torch.bfloat16 and states.device.type != "mps":
        parts = _split(states)
        # There, torch multiplies bfloat16 numbers without rounding the sums only as float32.
        return parts.float() if states.device.type == "cpu" else parts
    if states.dtype != weight.dtype or weight.device.type != "cuda":
        states = states.to(torch.promote_types(weight.dtype, torch.float32))
    return states[None]


def _split(states: Tensor) -> Tensor:
    """Return states as a sum of bfloat16 numbers (part, row, width)."""
    if states.dtype == torch.bfloat16:
        return states[None]
    parts = []
    for _ in range(PARTS):
        part = states.bfloat16()
        parts.append(part)
        states = states - part
    return torch.stack(parts)


def multiply(parts: Tensor, rows: Tensor) -> Tensor:
    """Return products of states and rows of a matrix, (row, token), in float32 or wider.

    Parameters
    ----------
    parts : tensor of shape (part, row, width)
        What `factors` returned for the whole matrix.
    rows : tensor of shape (token, width)
        Rows of the matrix.
    """
    flat = parts.flatten(0, 1)
    if flat.dtype in (torch.bfloat16, torch.float16):
        made = torch.mm(flat, rows.T, out_dtype=torch.float32)
    elif rows.dtype == torch.bfloat16 and flat.device.type == "cpu":
        made = _multiply_narrow(flat, rows.float())
    else:
        made = flat @ rows.to(flat.dtype).T
    if len(parts) == 1:
        return made
    # The smallest first, which loses least.
    return made.unflatten(0, parts.shape[:2]).flip(0).sum(0)


def _multiply_narrow(states: Tensor, rows: Tensor) -> Tensor:
    """Multiply float32 numbers that are exact in bfloat16, as bfloat16 where the CPU has that."""
    setting: Any = torch.backends.mkldnn
    setting = setting.matmul
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        return states @ rows.T
    finally:
        setting.fp32_precision = before
