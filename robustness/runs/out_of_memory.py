"""Recovery when memory runs out: the same work in smaller portions."""

import gc
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import torch

from robustness.errors import Refusal, first_line, is_out_of_memory
from robustness.trace.types import Matrix

Result = TypeVar("Result")

# Recorded in files, and read again when a run resumes.
_CAP, _SEQUENCES = "state cap {}", "{} sequence(s) at once"

HEAD = "the head's matrix is not copied"
"""Text of the record that memory has no room for a centred copy of the head's matrix."""


class Portions:
    """Size of the portions in which batches are run, halved whenever memory runs out.

    First the number of states that go through a block together is halved. When that is one, the
    number of sequences in a trace is halved. The numbers of a sequence change by rounding alone.

    Parameters
    ----------
    record : callable
        Function of the first sequence of a batch and a text about the portions from there on, which
        it saves with the results.
    tell : callable
        Callback for messages.
    remedy : str
        Advice for a user whose memory does not hold one sequence.
    """

    def __init__(
        self,
        record: Callable[[int, str], object] = lambda sequence, text: None,
        tell: Callable[[str], object] = lambda text: None,
        remedy: str = "a shorter `context`, `dtype` bfloat16, or another `device`",
    ) -> None:
        self.cap: int | None = None
        """Maximum number of states that go through a block together; None if it was not lowered."""
        self.sequences: int | None = None
        """Maximum number of sequences in a trace; None if it was not lowered."""
        self._record, self._tell, self._remedy = record, tell, remedy

    def __str__(self) -> str:
        limits = []
        if self.cap is not None:
            limits.append(_CAP.format(self.cap))
        if self.sequences is not None:
            limits.append(_SEQUENCES.format(self.sequences))
        return ", ".join(limits)

    def begin(self, recorded: str) -> None:
        """Begin with the limits that were recorded before the run was interrupted."""
        self.cap = _least(self.cap, recorded, _CAP)
        self.sequences = _least(self.sequences, recorded, _SEQUENCES)

    def each(
        self,
        rows: slice,
        measure: Callable[[slice, int | None], Result],
        tokens: Callable[[slice], int],
        stacked: Callable[[int | None], int] = lambda cap: 1,
    ) -> Iterator[tuple[slice, Result]]:
        """Measure a batch portion by portion; a portion that does not fit is divided and repeated.

        Parameters
        ----------
        rows : slice
            Sequences of the batch.
        measure : callable
            Function of the sequences of a portion and `cap`, which returns the portion's results.
        tokens : callable
            Function from sequences to their number of tokens after padding.
        stacked : callable
            Function from `cap` to the number of states that go through a block together.

        Yields
        ------
        tuple
            Sequences and results of every portion.

        Raises
        ------
        Refusal
            If one sequence does not fit.
        """
        start = rows.start
        while start < rows.stop:
            part = slice(start, min(start + (self.sequences or rows.stop), rows.stop))
            result = _attempt(partial(measure, part, self.cap))
            if not isinstance(result, _OutOfMemory):
                yield part, result
                start = part.stop
                continue
            _free_memory()
            if not self._lower(part, stacked):
                raise Refusal(
                    f"one sequence of {tokens(part)} tokens does not fit into memory: ask for "
                    f"{self._remedy}"
                ) from MemoryError(result)
            self._say(rows.start, str(self))

    def matrix(self, unembedding: Callable[..., Matrix | None], sequence: int) -> Matrix | None:
        """Return the result of `Model.unembedding`, which memory may have no room for.

        Parameters
        ----------
        unembedding : callable
            Method of the model. Where memory has no room for its copy, it is called with
            `copied=False`.
        sequence : int
            First sequence that is still to be measured.
        """
        # Twice, since memory that other work left behind is freed in between.
        for _ in range(2):
            result = _attempt(unembedding)
            if not isinstance(result, _OutOfMemory):
                return result
            _free_memory()
        self._say(sequence, HEAD)
        return unembedding(copied=False)

    def _lower(self, part: slice, stacked: Callable[[int | None], int]) -> bool:
        """Halve a limit from now on, and return whether there was one to halve."""
        together, count = stacked(self.cap), part.stop - part.start
        if together > 1:
            self.cap = together // 2
        elif count > 1:
            self.sequences = count // 2
        return together > 1 or count > 1

    def _say(self, sequence: int, text: str) -> None:
        self._tell(f"out of memory: from here on {text}")
        self._record(sequence, text)


class _OutOfMemory(str):
    """Message of an error that says that memory ran out."""


def _attempt(run: Callable[[], Result]) -> Result | _OutOfMemory:
    """Return the result of a function, or the message of its error if memory runs out."""
    try:
        return run()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        # The message alone: the error would keep alive all tensors that are to be freed, by its
        # traceback, by the errors that caused it, and by what nnsight adds to it.
        return _OutOfMemory(first_line(error))


def _free_memory() -> None:
    """Free the memory of a failed attempt, whose error must be gone by now."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def _least(now: int | None, recorded: str, pattern: str) -> int | None:
    """Return the smallest number that a record has in the place of `{}`, or `now` if it is less."""
    numbers = re.findall(re.escape(pattern).replace(r"\{\}", r"(\d{1,9})"), recorded)
    limits = [max(1, int(number)) for number in numbers]
    if now:
        limits.append(now)
    return min(limits, default=None)
