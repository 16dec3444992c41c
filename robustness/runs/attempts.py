"""Attempts at work that may be too large: for memory here, or for a server's memory or time."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch

from robustness.errors import TooLarge, first_line, is_out_of_memory

Result = TypeVar("Result")

Lacking = Literal["memory", "time"]


@dataclass(frozen=True)
class Failure:
    """An attempt that failed because the work was too large."""

    message: str
    lacking: Lacking
    """What there was too little of."""
    there: bool
    """Whether it was lacking on a server."""


def attempt(run: Callable[[], Result]) -> Result | Failure:
    """Return the result of a function, or why its work was too large.

    The message alone is kept of an error: the error would keep alive all tensors that are to be
    freed, by its traceback, by the errors that caused it, and by what nnsight adds to it.
    """
    try:
        return run()
    except TooLarge as error:
        return Failure(str(error), error.lacking, there=True)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return Failure(first_line(error), "memory", there=False)


def free_memory() -> None:
    """Free the memory of a failed attempt, whose error must be gone by now."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
