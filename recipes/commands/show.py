"""Commands that print a file as a table, and draw it as a figure."""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from recipes.commands.directory import say_directory
from recipes.commands.errors import REMEDY
from recipes.commands.gathering import together
from recipes.commands.parameters import Named, Place
from recipes.commands.progress import advise, advise_reading, quiet_option, quoted, tell
from recipes.commands.tables import chosen_form, say_tables, table_options
from recipes.terminal import say
from robustness.errors import reading

if TYPE_CHECKING:
    import xarray as xr

PAGES = {"claims": "report.html", "compare": "{stem}.html"}
"""Name of the page that belongs to a file, by its kind."""

statistics_options = together(
    click.option(
        "--minus",
        type=Named(),
        metavar="NAME|FILE",
        help="Print or draw paired differences from NAME, an intervention, schedule, lens or probe "
        "of FILE, from the clean model (clean), or from another file.",
    ),
    click.option(
        "--bootstrap",
        is_flag=True,
        help="Use bootstrap intervals instead of standard errors.",
    ),
)
"""The options that say what is compared, and how its uncertainty is given."""


@click.command()
@click.argument("file", type=Place())
@statistics_options
@table_options
@quiet_option
def show(file: Path, minus: str | None, bootstrap: bool) -> None:
    """Print FILE as a table of means, with standard errors clustered by document.

    If FILE is a directory, the results in it are listed.

    \b
    stages show outputs/builtin
    stages show outputs/builtin/sweep.nc
    stages show outputs/builtin/sweep.nc --csv
    stages show outputs/builtin/sweep.nc --minus drop
    stages show outputs/builtin/sweep.nc --minus outputs/builtin-parallel/sweep.nc --bootstrap
    """
    if file.is_dir():
        say_directory(file)
        return
    with reading(str(file), REMEDY):
        dataset = _read(file, minus)
    say_table(file, dataset, by_bootstrap=bootstrap)
    # Verdicts and comparisons have no figure of their own, but a page beside them.
    page = PAGES.get(str(dataset.attrs.get("measurement")))
    if page is None:
        advise(f"plot {quoted(file)}")
    else:
        advise_reading(file.with_name(page.format(stem=file.stem)))


@click.command()
@click.argument("file", type=Place())
@statistics_options
@click.option(
    "--out",
    type=Place(),
    help="Path of the figure to write, a .png, .svg or .pdf file.  [default: beside FILE]",
)
@quiet_option
def plot(file: Path, minus: str | None, bootstrap: bool, out: Path | None) -> None:
    """Draw FILE as a figure, and print the figure's path.

    \b
    stages plot outputs/builtin/sweep.nc --out sweep.svg
    stages plot outputs/builtin/sweep.nc --minus drop --bootstrap
    """
    tell(f"drawing {file}")
    from recipes.views import draw
    from robustness.files import ownership
    from robustness.files.figures import save_figure

    with reading(str(file), REMEDY):
        dataset = _read(file, minus)
    path = out or _figure_of(file, minus)
    ownership.check(path, ownership.FIGURE)
    with viewing(file, dataset):
        save_figure(draw(dataset, by_bootstrap=bootstrap), path)
    say(path)
    flags = "" if minus is None else f" --minus {quoted(minus)}"
    advise(f"show {quoted(file)}{flags}")


def viewing(file: Path, dataset: "xr.Dataset") -> AbstractContextManager[None]:
    """Refuse a dataset whose table or figure cannot be made, which need not be the file's fault."""
    kind = dataset.attrs.get("measurement", "")
    return reading(
        str(file),
        "run the command that made it again with --fresh, or mend the view; --debug shows where",
        f"does not fit the view of files of the kind {kind!s:.40}",
    )


def say_table(
    file: Path,
    dataset: "xr.Dataset",
    places: Mapping[str, Path] | None = None,
    *,
    by_bootstrap: bool = False,
) -> None:
    """Print the dataset of a file as a table, and below it the paths of the files about it."""
    from recipes.views import table

    # A reader that has had enough of the table is no fault of the view.
    with viewing(file, dataset):
        tables = table(dataset, by_bootstrap=by_bootstrap)
    say_tables(tables)
    say_places(places or {})


def say_places(places: Mapping[str, Path]) -> None:
    """Print the paths of files below a table; programs that read JSON or CSV get that alone."""
    if places and chosen_form() is None:
        width = max(map(len, places)) + 1
        say("")
        for name, place in places.items():
            say(f"{name + ':':{width}} {place}")


def _read(file: Path, minus: str | None) -> "xr.Dataset":
    """Read a file, and subtract what --minus names."""
    from robustness.files.netcdf import load
    from robustness.files.sequences import measured_sequences
    from robustness.statistics.paired import difference

    dataset = load(file)
    if minus is None:
        return dataset
    # A text that is no file is the name of an intervention, a lens or the like in this one.
    other = measured_sequences(load(Path(minus))) if Path(minus).is_file() else minus
    return difference(measured_sequences(dataset), other)


def _figure_of(file: Path, minus: str | None) -> Path:
    """Return the default path of a figure; a figure of differences has a path of its own."""
    if minus is None:
        return file.with_name(f"{file.stem}.png")
    # Schedules, such as 0..2-(3+4), have characters that a shell would take for its own.
    other = re.sub(r"[^A-Za-z0-9.]+", "-", Path(minus).stem)
    return file.with_name(f"{file.stem}-less-{other}.png")
