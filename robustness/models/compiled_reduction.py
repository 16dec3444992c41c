"""Reduction of a strip of logits in few passes: compiled on a GPU, where passes cost most.

A strip of logits takes a GPU about as long to reduce, operation by operation, as to compute. The
compiled reduction saves time only, so that where it cannot be compiled, the plain one goes on.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.utils._triton import has_triton

from robustness.errors import is_out_of_memory
from robustness.trace import paired
from robustness.trace.types import Absorb, Absorbed


def reduction(device: torch.device) -> Absorb:
    """Return `paired.absorb`, or a compiled form of it where the device gains by that."""
    # Triton is what torch compiles for a GPU with; on a CPU the compiled form is not faster.
    return compiled() if device.type == "cuda" and has_triton() else paired.absorb


@cache
def compiled() -> Absorb:
    """Return a compiled form of `paired.absorb`, which all models share."""
    run = torch.compile(_absorb)
    failed: list[BaseException] = []

    def absorb(
        absorbed: Absorbed,
        logits: Tensor,
        targets: Tensor,
        offset: Tensor,
        divergences: Sequence[str],
    ) -> Absorbed:
        # The last strip, which is narrower, is one of many: it would not earn its compilation.
        if not failed and logits.shape[-1] % paired.NARROWEST_STRIP == 0:
            try:
                made: Absorbed = run(absorbed, logits, targets, offset, tuple(divergences))
                return made
            except Exception as error:  # whatever a compiler raises
                if is_out_of_memory(error):
                    raise
                failed.append(error.with_traceback(None))
        return paired.absorb(absorbed, logits, targets, offset, divergences)

    return absorb


def _absorb(
    absorbed: Absorbed,
    logits: Tensor,
    targets: Tensor,
    offset: Tensor,
    divergences: Sequence[str],
) -> Absorbed:
    """Absorb a copy of logits. Compiled, nothing is copied, and the logits are not written to."""
    return paired.absorb(absorbed, logits.clone(), targets, offset, divergences)
