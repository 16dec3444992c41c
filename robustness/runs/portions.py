"""Recovery where work is too large for memory or for a server: the same in smaller portions."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from robustness.errors import Refusal, TooLarge
from robustness.runs.attempts import Failure, Lacking, attempt, free_memory
from robustness.schedules.division import Division
from robustness.trace.types import Matrix

Result = TypeVar("Result")

Taken = TypeVar("Taken", covariant=True)

# Recorded in files, and read again when a run resumes.
_CAP, _SEQUENCES, _REQUESTS = "state cap {}", "{} sequence(s) at once", "{} requests a batch"

HEAD = "the head's matrix is not copied"
"""Text of the record that memory has no room for a centred copy of the head's matrix."""

WORDS = {"memory": "out of memory", "time": "out of time"}
"""What a message begins with, by what is lacking."""


WHOLE = Division(schedules=((),), clean=(), per_group=1)
"""Division of work that has no schedules."""


@dataclass(frozen=True)
class Piece:
    """What is measured in one trace."""

    rows: slice
    """Sequences."""
    group: slice
    """Schedules; the only one where there are none."""
    cap: int | None
    """Maximum number of states that go through a block together, if it was lowered."""


@dataclass(frozen=True)
class Work(Generic[Taken]):
    """How batches are measured, and what their size follows from."""

    measure: Callable[[Piece], Taken]
    """Function that returns the results of a trace."""
    tokens: Callable[[slice], int]
    """Function from sequences to their number of tokens after padding."""
    stacked: Callable[[Piece], int] = lambda piece: 1
    """Function that returns the number of states that go through a block together."""
    division: Division = WHOLE
    """The schedules."""
    requests: int = 1
    """Number of traces for the schedules of a batch, if it was not raised."""
    describe: Callable[[Piece], str] = lambda piece: ""
    """Function that returns what it takes, for a message."""


class Portions:
    """Size of the portions in which batches are run, lowered whenever one is too large.

    Where memory runs out, the number of states that go through a block together is halved. When
    that is one, the number of sequences in a trace is halved, and after that the schedules of a
    batch are divided over twice as many traces. Where a server's time runs out, sequences are
    halved, and then schedules divided. The numbers of a sequence change by rounding alone.

    Parameters
    ----------
    record : callable
        Function of the first sequence of a batch, a text about the portions from there on, and
        what was lacking, which it saves with the results.
    tell : callable
        Callback for messages.
    remedy : str
        Advice for a user whose memory does not hold one sequence.
    pace : callable
        Function that returns the seconds of the latest requests to a server if they take far too
        long, and None otherwise; see `robustness.runs.budget`.
    """

    def __init__(
        self,
        record: Callable[[int, str, Lacking], object] = lambda sequence, text, lacking: None,
        tell: Callable[[str], object] = lambda text: None,
        remedy: str = "a shorter `context`, `dtype` bfloat16, or another `device`",
        pace: Callable[[], float | None] = lambda: None,
    ) -> None:
        self.cap: int | None = None
        """Maximum number of states that go through a block together; None if it was not lowered."""
        self.sequences: int | None = None
        """Maximum number of sequences in a trace; None if it was not lowered."""
        self.requests: int | None = None
        """Number of traces for the schedules of a batch; None if it was not raised."""
        self._record, self._tell, self._remedy, self._pace = record, tell, remedy, pace

    def __str__(self) -> str:
        limits = []
        for pattern, limit in (
            (_CAP, self.cap),
            (_SEQUENCES, self.sequences),
            (_REQUESTS, self.requests),
        ):
            if limit is not None:
                limits.append(pattern.format(limit))
        return ", ".join(limits)

    def begin(self, recorded: str) -> None:
        """Begin with the limits that were recorded before the run was interrupted."""
        self.cap = min(_numbers(self.cap, recorded, _CAP), default=None)
        self.sequences = min(_numbers(self.sequences, recorded, _SEQUENCES), default=None)
        self.requests = max(_numbers(self.requests, recorded, _REQUESTS), default=None)

    def each(self, rows: slice, work: Work[Result]) -> Iterator[tuple[slice, list[Result]]]:
        """Measure a batch portion by portion; a portion that does not fit is divided and repeated.

        Parameters
        ----------
        rows : slice
            Sequences of the batch.
        work : Work
            How they are measured.

        Yields
        ------
        tuple
            Sequences of every portion, and the results of its traces, in the order of schedules.

        Raises
        ------
        Refusal
            If one sequence does not fit, under one schedule.
        """
        start = rows.start
        while start < rows.stop:
            self._keep_pace(self._part(start, rows), work)
            part = self._part(start, rows)
            results = self._measure(rows, part, work)
            if results is not None:
                yield part, results
                start = part.stop

    def _part(self, start: int, rows: slice) -> slice:
        """Return the portion that begins with a sequence."""
        return slice(start, min(start + (self.sequences or rows.stop), rows.stop))

    def _keep_pace(self, part: slice, work: Work[Result]) -> None:
        """Make a portion smaller, and those after it, if the requests before it took too long."""
        seconds = self._pace()
        if seconds is None:
            return
        if self._lower("time", Piece(part, self._group(work, 0), self.cap), work):
            self._say(part.start, "time", f"requests take {seconds:.0f} s")

    def _measure(self, rows: slice, part: slice, work: Work[Result]) -> list[Result] | None:
        """Measure a portion, or lower its size and return None where it has to be divided."""
        results: list[Result] = []
        done = 0
        while done < len(work.division.schedules):
            piece = Piece(part, self._group(work, done), self.cap)
            result = attempt(partial(work.measure, piece))
            if not isinstance(result, Failure):
                results.append(result)
                done = piece.group.stop
                continue
            if not result.there:
                free_memory()
            sequences = self.sequences
            if not self._lower(result.lacking, piece, work):
                raise self._refuse(result, piece, work)
            self._say(rows.start, result.lacking, WORDS[result.lacking])
            if self.sequences != sequences:
                return None
        return results

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
            result = attempt(unembedding)
            if not isinstance(result, Failure):
                return result
            free_memory()
        self._note(sequence, "memory", WORDS["memory"], HEAD)
        return unembedding(copied=False)

    def _group(self, work: Work[Result], done: int) -> slice:
        """Return the schedules that are measured next."""
        return work.division.after(done, max(work.requests, self.requests or 1))

    def _lower(self, lacking: Lacking, piece: Piece, work: Work[Result]) -> bool:
        """Lower a limit from now on, and return whether there was one to lower."""
        together, count = work.stacked(piece), piece.rows.stop - piece.rows.start
        if lacking == "memory" and together > 1:
            self.cap = together // 2
        elif count > 1:
            self.sequences = count // 2
        else:
            return self._divide(piece.group, work)
        return True

    def _divide(self, group: slice, work: Work[Result]) -> bool:
        """Divide schedules over twice as many traces, until some have fewer of them."""
        size = group.stop - group.start
        if size == 1:
            return False
        while self._group(work, group.start).stop >= group.stop:
            self.requests = 2 * max(work.requests, self.requests or 1)
        return True

    def _refuse(self, failure: Failure, piece: Piece, work: Work[Result]) -> Refusal:
        """Return the error of a request that nothing can be taken from."""
        tokens = work.tokens(piece.rows)
        if not failure.there:
            text = f"one sequence of {tokens} tokens does not fit into memory"
            refusal = Refusal(f"{text}: ask for {self._remedy}")
            refusal.__cause__ = MemoryError(failure.message)
            return refusal
        takes = work.describe(piece)
        under = " under one schedule" if work.division is not WHOLE else ""
        # What a trace of the user's own is advised is what was tried here.
        reason = failure.message.partition("; ask for")[0]
        return TooLarge(
            f"one sequence of {tokens} tokens{under} is too large a request"
            f"{f', of {takes}' if takes else ''} ({reason}): ask for texts of fewer tokens, or "
            "another `host`",
            failure.lacking,
        )

    def _say(self, sequence: int, lacking: Lacking, why: str) -> None:
        self._note(sequence, lacking, why, str(self))

    def _note(self, sequence: int, lacking: Lacking, why: str, text: str) -> None:
        self._tell(f"{why}: from here on {text}")
        self._record(sequence, text, lacking)


def _numbers(now: int | None, recorded: str, pattern: str) -> list[int]:
    """Return the numbers that a record has in the place of `{}`, and the one of now."""
    found = re.findall(re.escape(pattern).replace(r"\{\}", r"(\d{1,9})"), recorded)
    limits = [max(1, int(number)) for number in found]
    return [*limits, now] if now else limits
