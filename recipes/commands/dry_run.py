"""Dry runs: commands that print what a run would take, and compute nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from recipes.commands.progress import tell
from recipes.commands.tables import say_rows

if TYPE_CHECKING:
    from robustness.runs.foresight import Foresight

dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Print what would be computed, and run nothing."
)


class _Foreseen(Exception):
    """Ends a run before its first trace."""

    def __init__(self, foresight: "Foresight") -> None:
        super().__init__("a dry run ends here")
        self.foresight = foresight


@contextmanager
def rehearsal() -> "Iterator[Callable[[Foresight], object]]":
    """Print what a run is about to do, in the place of the run.

    Yields
    ------
    callable
        Value of `RunOptions.foresee` for the run, which is to be given no path.
    """

    def stop(foresight: "Foresight") -> None:
        raise _Foreseen(foresight)

    try:
        yield stop
    except _Foreseen as foreseen:
        from robustness.runs.foresight import describe

        say_rows(("what", "cost"), describe(foreseen.foresight))
    say_nothing_was_run()


def say_nothing_was_run() -> None:
    """Tell that this was a dry run."""
    tell("nothing was run: the same command without --dry-run runs it")
