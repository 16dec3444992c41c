"""Messages of a command while it works: what it does, how far it is, and what may follow."""

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

from recipes.commands.errors import as_options
from recipes.terminal import Forgiving, note, printable

if TYPE_CHECKING:
    from tqdm import tqdm

LINE_EVERY = 60.0
"""Number of seconds between two lines of progress where there is no terminal."""

QUIET = f"{__name__}.quiet"
"""Key under which click's context remembers --quiet."""


def _remember(context: click.Context, _: click.Parameter, quiet: bool) -> None:
    context.meta[QUIET] = quiet


quiet_option = click.option(
    "--quiet",
    is_flag=True,
    expose_value=False,
    callback=_remember,
    help="Print results and errors alone: no progress, notes or next steps.",
)
"""The option of every command that suppresses all but results and errors."""


def is_quiet() -> bool:
    """Whether the command that runs was given --quiet."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(QUIET))


def tell(text: str) -> None:
    """Print a message, above the progress bar if there is one."""
    if is_quiet():
        return
    # Imported late, like every library in these modules, so that --help is quick.
    from tqdm import tqdm

    tqdm.write(printable(f"stages: {as_options(text)}"), file=Forgiving(sys.stderr))


def advise(command: str) -> None:
    """Print the command that may follow, which is given without its first word, stages."""
    if not is_quiet():
        note(f"next: stages {command}")


def advise_reading(page: Path) -> None:
    """Print that a page can be opened."""
    if not is_quiet():
        note(f"next: open {page} in a browser")


def quoted(path: Path | str) -> str:
    """Return a path as a shell takes it."""
    return shlex.quote(str(path))


@contextmanager
def progress(total: int | None, unit: str) -> Iterator["Meter"]:
    """Show progress: as a bar in a terminal, and as a line every minute elsewhere.

    Parameters
    ----------
    total : int, optional
        Number of units, where it is known beforehand.
    unit : str
        Name of a unit, in the singular.

    Yields
    ------
    Meter
        Function to call with the number of units that are done and the number of all.
    """
    from tqdm import tqdm

    disable = is_quiet() or None  # None disables the bar where there is no terminal
    with tqdm(total=total, unit=unit, disable=disable, file=Forgiving(sys.stderr)) as bar:
        yield Meter(bar, unit)


class Meter:
    """Shows progress on a bar, or in lines where the bar is disabled."""

    def __init__(self, bar: "tqdm[Any]", unit: str) -> None:
        self._bar = bar
        self._unit = unit
        self._last_line: float | None = None
        self.is_begun = False
        """Whether it was called."""

    def __call__(self, done: int, whole: int, detail: str = "") -> None:
        """Show that `done` of `whole` units are done, and a detail beside it."""
        self._bar.total = whole
        if not self.is_begun:
            # What an earlier run did says nothing about the speed of this one.
            self._bar.initial = done
        if detail:
            self._bar.set_postfix_str(detail, refresh=False)
        self._bar.update(done - self._bar.n)
        if self._bar.disable and not is_quiet():
            self._write_line(done, whole, detail)
        self.is_begun = True

    def _write_line(self, done: int, whole: int, detail: str) -> None:
        now = monotonic()
        if self._last_line is not None and now - self._last_line < LINE_EVERY:
            return
        self._last_line = now
        resumed = "going on from " if done and not self.is_begun else ""
        note(f"stages: {resumed}{done} of {whole} {self._unit}s{detail and f' ({detail})'}")


def show_steps(meter: Meter) -> Callable[[int, int, float, float], None]:
    """Return a callback for the steps of a training, which are told when they are taken."""

    def show(step: int, steps: int, loss: float, speed: float) -> None:
        if not meter.is_begun:
            # The step before the first is where this call began.
            meter(step - 1, steps)
        meter(step, steps, f"loss {loss:.3f}, {speed:.0f} tokens/s")

    return show
