"""What to do when memory runs out: the same work in smaller portions."""

import gc
import re
from collections.abc import Callable

import torch

from robustness.plan import RUN, Plan

_MESSAGE = re.compile(r"out of memory|can't allocate memory", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: of a GPU, or of this machine."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and _MESSAGE.search(str(error)) is not None
    )


class Portions:
    """How much is run at once: states that go through a block, and sequences in a trace.

    Parameters
    ----------
    compile_with : callable
        From a cap on states to a plan.
    cap : int
        The cap to begin with.
    sequences : int
        The most sequences of a trace.
    """

    def __init__(self, compile_with: Callable[[int], Plan], cap: int, sequences: int) -> None:
        self._compile = compile_with
        self.cap, self.sequences = cap, sequences
        self.plan = compile_with(cap)

    def lower(self, sequences: int) -> str | None:
        """Take half as much from now on, and say so; None where nothing can be taken less.

        Parameters
        ----------
        sequences : int
            In the trace that memory ran out in.
        """
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        widest = max((len(row[2]) for row in self.plan.rows if row[0] == RUN), default=1)
        if min(self.cap, widest) > 1:
            self.cap = min(self.cap, widest) // 2
            self.plan = self._compile(self.cap)
            return f"state cap {self.cap}"
        if sequences > 1:
            self.sequences = sequences // 2
            return f"state cap {self.cap}, {self.sequences} sequence(s) at once"
        return None
