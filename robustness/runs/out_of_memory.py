"""What to do when memory runs out: the same work in smaller portions."""

import gc
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import torch

from robustness.errors import Refusal, first_line
from robustness.trace.types import Matrix

Found = TypeVar("Found")

_MESSAGE = re.compile(
    r"out of (\w+ )?memory|out_of_(\w+_)?memory|can't allocate memory|alloc_failed", re.IGNORECASE
)

_CAP, _SEQUENCES = "state cap {}", "{} sequence(s) at once"

HEAD = "the head is called, and its matrix not copied"
"""What is done where there is no room for the matrix by which logits are read."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: of a GPU, or of this machine."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and _MESSAGE.search(str(error)) is not None
    )


class Portions:
    """How much of a batch is run at once: less from where memory runs out on.

    Half as many states go through a block together then, and where that is one, half as many
    sequences are in a trace. The numbers of a sequence stay the same but for rounding.

    Parameters
    ----------
    record : callable
        Given the first sequence of the batch and what is run at once from there on, keeps that
        with the numbers.
    tell : callable
        Told of it.
    remedy : str
        What the user can ask for where not even one sequence fits.
    """

    def __init__(
        self,
        record: Callable[[int, str], object] = lambda sequence, text: None,
        tell: Callable[[str], object] = lambda text: None,
        remedy: str = "a shorter `context`, `dtype` bfloat16, or another `device`",
    ) -> None:
        self.cap: int | None = None
        """The most states that go through a block together, if memory has run out."""
        self.sequences: int | None = None
        """The most sequences in a trace, if memory has run out so far."""
        self._record, self._tell, self._remedy = record, tell, remedy

    def __str__(self) -> str:
        cap = [] if self.cap is None else [_CAP.format(self.cap)]
        together = [] if self.sequences is None else [_SEQUENCES.format(self.sequences)]
        return ", ".join([*cap, *together])

    def begin(self, recorded: str) -> None:
        """Begin with what the run took at once before it was interrupted, as was recorded."""
        self.cap = _least(self.cap, recorded, _CAP)
        self.sequences = _least(self.sequences, recorded, _SEQUENCES)

    def each(
        self,
        rows: slice,
        measure: Callable[[slice, int | None], Found],
        tokens: Callable[[slice], int],
        stacked: Callable[[int | None], int] = lambda cap: 1,
    ) -> Iterator[tuple[slice, Found]]:
        """Measure a batch portion by portion; where memory runs out, a smaller one anew.

        Parameters
        ----------
        rows : slice
            The sequences of the batch.
        measure : callable
            Given sequences, and the most states that may go through a block together if that is
            less than was asked for, returns what is wanted of these sequences.
        tokens : callable
            How many tokens some sequences have when they are filled up.
        stacked : callable
            How many states go through a block together at most, given the same cap.

        Yields
        ------
        tuple
            The sequences of every portion, and what is wanted of them.

        Raises
        ------
        Refusal
            If one sequence does not fit.
        """
        start = rows.start
        while start < rows.stop:
            part = slice(start, min(start + (self.sequences or rows.stop), rows.stop))
            found = _attempt(partial(measure, part, self.cap))
            if not isinstance(found, _Lacking):
                yield part, found
                start = part.stop
                continue
            _empty()
            if not self._lower(part, stacked):
                raise Refusal(
                    f"one sequence of {tokens(part)} tokens does not fit into memory: ask for "
                    f"{self._remedy}"
                ) from MemoryError(found)
            self._say(rows.start, str(self))

    def matrix(self, unembedding: Callable[[], Matrix], sequence: int) -> Matrix:
        """Return what `Model.unembedding` does, or nothing where there is no room for a copy.

        Logits then come from calling the head, as on a server.

        Parameters
        ----------
        unembedding : callable
            Of the model.
        sequence : int
            From which on the run goes on.
        """
        for _ in range(2):  # what is left of other work may be in the way
            found = _attempt(unembedding)
            if not isinstance(found, _Lacking):
                return found
            _empty()
        self._say(sequence, HEAD)
        return None, None

    def _lower(self, part: slice, stacked: Callable[[int | None], int]) -> bool:
        """Take half as much from now on, if anything can be taken less."""
        together, count = stacked(self.cap), part.stop - part.start
        if together > 1:
            self.cap = together // 2
        elif count > 1:
            self.sequences = count // 2
        return together > 1 or count > 1

    def _say(self, sequence: int, text: str) -> None:
        self._tell(f"out of memory: from here on {text}")
        self._record(sequence, text)


class _Lacking(str):
    """What an error said that memory ran out by."""


def _attempt(run: Callable[[], Found]) -> Found | _Lacking:
    """Return what is found, or what is said where memory runs out.

    Not the error itself, which would keep all that is to be freed: by its traceback, by the errors
    that it came of, and by what nnsight adds to it.
    """
    try:
        return run()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return _Lacking(first_line(error))


def _empty() -> None:
    """Give back what a failed attempt held, once its error is gone."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def _least(now: int | None, recorded: str, pattern: str) -> int | None:
    """Return the smallest number that stands in what was recorded, or what is so now."""
    numbers = re.findall(re.escape(pattern).replace(r"\{\}", r"(\d{1,9})"), recorded)
    return min([max(1, int(number)) for number in numbers] + ([now] if now else []), default=None)
