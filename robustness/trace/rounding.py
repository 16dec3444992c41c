"""The clean run beside a second one, whose states are rounded anew before every block.

Both run in one forward pass of the model itself, as the halves of one batch. How far their
predictions are apart shows how much of a KL is rounding, where nothing else can be computed than
what the model computes.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustness.trace import readings

if TYPE_CHECKING:
    from robustness.trace.types import CleanRun, Envoy, Modules, PlanRows, ReadoutQueries

VARIANCE = 1 / 12
"""Variance of a rounding error, in squares of the distance between two neighbouring numbers."""


def disturb(blocks: Sequence[Envoy]) -> None:
    """Round the states of the second half of a batch anew before every block of the clean run."""
    for seed, block in enumerate(blocks):
        # Read and replaced in the order of execution.
        block.input = in_second_half(block.input, seed)


def in_second_half(hidden: Tensor, seed: int) -> Tensor:
    """Return states (sequence, token, width) whose second half of the sequences is rounded anew."""
    kept, rounded = hidden.chunk(2)
    return torch.cat([kept, anew(rounded, seed)])


def anew(hidden: Tensor, seed: int) -> Tensor:
    """Return states in half precision, of which some numbers are a neighbour of what they were.

    The numbers are drawn, and go up or down with equal chance. The error is one to two times that
    of a rounding, since neighbours are half to once the relative distance that is added apart.
    """
    generator = torch.Generator(hidden.device).manual_seed(seed)
    drawn = torch.rand(hidden.shape, generator=generator, device=hidden.device)
    up, down = drawn < VARIANCE / 2, drawn > 1 - VARIANCE / 2
    steps = torch.finfo(hidden.dtype).eps * (up.float() - down.float())
    return (hidden.float() * (1 + steps)).to(hidden.dtype)


def measure(final: Tensor, modules: Modules, queries: ReadoutQueries) -> dict[str, Tensor]:
    """Compare the second half of the final states with the first, which counts as the clean run.

    Parameters
    ----------
    final : tensor of shape (2 · sequence, token, width)
        Last residual streams.
    modules : Modules
        Norms and head of the model.
    queries : ReadoutQueries
        The positions that are read.

    Returns
    -------
    dict of str to tensor
        As of `readings.measure`, with one schedule.
    """
    clean, rounded = final.chunk(2)
    plan: PlanRows = {"rows": [("read", None, (0,), ((0,),), (0,))], "schedules": 1}
    run: CleanRun = {"states": {0: rounded}, "final": clean, "modules": modules}
    return readings.measure(plan, run, queries)
