"""Options of a run: its file, the size of its batches, and callbacks for progress and messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from robustness.errors import Refusal

if TYPE_CHECKING:
    from robustness.runs.foresight import Foresight

Progress = Callable[[int, int], object]
"""Callback for the number of sequences that are done and the number of all."""

Tell = Callable[[str], object]
"""Callback for a sentence to the user."""


def silent(text: str) -> None:
    """Discard a message."""


@dataclass(frozen=True)
class RunOptions:
    """Options of a run that change no number but for rounding."""

    out: Path | None = None
    """Path of the file to write; without it, the results are returned alone."""
    fresh: bool = False
    """Whether an existing file or an unfinished run at `out` is discarded."""
    batch_tokens: int | None = None
    """Tokens of text in one trace; without it, a number that suits the device."""
    state_cap: int | None = None
    """Maximum number of states that go through a block together; without it, one that suits the
    device."""
    command: str = ""
    """Command line to record in the file."""
    progress: Progress | None = None
    """Callback for progress, called at the start and after every batch."""
    tell: Tell = silent
    """Callback for messages, such as that memory ran out and smaller portions follow."""
    foresee: Callable[[Foresight], object] | None = None
    """Callback for what the run is about to do, called before its first trace; an exception that it
    raises ends the run, which has then computed nothing."""

    def __post_init__(self) -> None:
        """Refuse sizes below one, and take a path that is given as text."""
        if self.out is not None:
            object.__setattr__(self, "out", Path(self.out))
        for name in ("batch_tokens", "state_cap"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise Refusal(f"`{name}` must be 1 or more, not {size}")

    def show(self, done: int, total: int) -> None:
        """Report progress to `progress`, if it is given."""
        if self.progress is not None:
            self.progress(done, total)
