"""Reductions of logits in few passes, compiled.

A strip of logits takes a GPU about as long to reduce, operation by operation, as to compute, and a
CPU a seventh of that. The compiled reductions save time only, so that where one cannot be compiled,
a warning says why, and the plain one goes on.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._triton import has_triton

from robustness.errors import first_line, is_out_of_memory
from robustness.trace import numerics, paired
from robustness.trace.types import Absorb, Absorbed

Reduction = TypeVar("Reduction", bound=Callable[..., Any])


def has_compiler(device: torch.device) -> bool:
    """Whether reductions are compiled for a device without being asked: on a GPU, with Triton."""
    return device.type == "cuda" and has_triton()


@cache
def compiled_absorb() -> Absorb:
    """Return a compiled form of `paired.absorb`, which all models share."""
    return _compiled(_absorb, paired.absorb, lambda arguments: arguments[1])


@cache
def compiled_totals() -> numerics.Totals:
    """Return a compiled form of `numerics.totals`, which all models share."""
    return _compiled(_totals, numerics.totals, lambda arguments: arguments[0])


def _compiled(
    function: Reduction, plain: Reduction, logits_of: Callable[[Any], Tensor]
) -> Reduction:
    """Return a compiled function that goes on as the plain one where it cannot be compiled.

    Parameters
    ----------
    function : callable
        What is compiled. It overwrites nothing.
    plain : callable
        The same, operation by operation.
    logits_of : callable
        Function that finds the logits among the arguments.
    """
    run = torch.compile(function)
    failed: list[BaseException] = []

    def reduce(*arguments: Any) -> Any:
        # The last strip, which is narrower, is one of many: it would not earn its compilation.
        if not failed and logits_of(arguments).shape[-1] % paired.NARROWEST_STRIP == 0:
            try:
                return run(*arguments)
            except Exception as error:  # whatever a compiler raises
                if is_out_of_memory(error):
                    raise
                failed.append(error.with_traceback(None))
                reason = first_line(error)
                warnings.warn(
                    f"sums over logits are not compiled ({reason}): they take longer", stacklevel=2
                )
        return plain(*arguments)

    return reduce  # type: ignore[return-value]


# Compiled, the copies of logits are not made, and nothing is written to them.
def _absorb(
    absorbed: Absorbed, logits: Tensor, targets: Tensor, offset: Tensor, divergences: Sequence[str]
) -> Absorbed:
    return paired.absorb(absorbed, logits.clone(), targets, offset, divergences)


def _totals(logits: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    return numerics.totals(logits.clone(), largest)
