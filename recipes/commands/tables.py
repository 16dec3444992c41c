"""Tables as commands print them: aligned for readers, or as JSON or CSV for programs."""

import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from recipes.terminal import say

if TYPE_CHECKING:
    from recipes.views import Tables

FORM = f"{__name__}.form"
"""Key under which click's context remembers the form of tables."""

Value = str | int | float


def _remember(context: click.Context, parameter: click.Parameter, chosen: bool) -> None:
    if not chosen:
        return
    if FORM in context.meta:
        raise click.UsageError("--json and --csv exclude each other")
    context.meta[FORM] = parameter.name


def table_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a command that prints a table."""
    for name, form in (("--csv", "comma-separated values"), ("--json", "JSON")):
        option = click.option(
            name,
            is_flag=True,
            expose_value=False,
            callback=_remember,
            help=f"Print the table as {form}, for other programs.",
        )
        command = option(command)
    return command


def chosen_form() -> str | None:
    """Return the form in which tables are printed: `json`, `csv`, or None for aligned text."""
    context = click.get_current_context(silent=True)
    return None if context is None else context.meta.get(FORM)


def say_tables(tables: "Tables") -> None:
    """Print tables in the chosen form; aligned text fits the terminal, if there is one."""
    from recipes.views import as_csv, as_json, as_text

    if chosen_form() == "json":
        say(as_json(tables))
    elif chosen_form() == "csv":
        say(as_csv(tables))
    else:
        say(as_text(tables, _terminal_width()))


def say_rows(columns: Sequence[str], rows: Iterable[Sequence[Value]]) -> None:
    """Print one table of plain values."""
    from recipes.views import Tables, plain_table

    # Without rows, zip would give no columns either.
    values = list(zip(*rows)) or [()] * len(columns)
    say_tables(Tables([plain_table(dict(zip(columns, values)))]))


def _terminal_width() -> int | None:
    """Return the width of the terminal, or None where output goes to a file or a pipe."""
    # A file or a pipe gets all columns, however wide.
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns
