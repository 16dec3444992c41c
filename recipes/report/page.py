"""Report of verdicts and figures, from the files of one model or several, as one HTML page."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import xarray as xr
from markupsafe import Markup

from recipes.evidence.files import Absent, Files
from recipes.experiments.catalogue import every_picture
from recipes.figures import draw
from recipes.judging.verdicts import CLAIMS, Verdict, judge, to_dataset
from recipes.recipe import Picture
from recipes.report.content import Drawn, render
from recipes.report.svg import inline, on_white, to_svg
from robustness.errors import Unwritable
from robustness.files import netcdf, ownership
from robustness.files.atomic import remove_leftovers_with_lock, write_with_lock

Progress = Callable[[int, int], object]
"""Function that is called with the number of finished figures, and of all figures."""


@dataclass(frozen=True)
class ReportFiles:
    """Paths of the files that a report writes."""

    page: Path
    """Path of the page."""
    claims: Path | None = None
    """Path of the NetCDF file of verdicts, if they are saved."""
    figures: Path | None = None
    """Path of the directory for the figures as `.svg` files, if they are saved."""

    def kinds(self) -> Iterator[tuple[Path, str]]:
        """Yield the path and kind of every file that a report may write."""
        yield self.page, ownership.PAGE
        if self.claims is not None:
            yield self.claims, CLAIMS
        if self.figures is not None:
            for picture in every_picture():
                yield self.figures / f"{picture.name}.svg", ownership.FIGURE

    def check(self) -> None:
        """Refuse a report that would replace other files.

        Raises
        ------
        Unwritable
            If any of its files is in the way, or the directory of the figures is a file.
        """
        figures = self.figures
        if figures is not None and figures.exists() and not figures.is_dir():
            raise Unwritable(f"{figures} is a file, and figures go into a directory: name another")
        for path, kind in self.kinds():
            ownership.check(path, kind)


def report(
    models: Sequence[Files],
    out: ReportFiles,
    *,
    comparison: xr.Dataset | None = None,
    settings: Mapping[str, str] | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> list[Verdict]:
    """Judge claims, draw figures, and write both into one page.

    Parameters
    ----------
    models : sequence of Files
        Files of one model, or of several to compare.
    out : ReportFiles
        Paths of the files to write.
    comparison : Dataset, optional
        Comparison of the models, from `recipes.judging.compare`.
    settings : mapping, optional
        Further attributes of the verdicts' file.
    command : str
        Command line, for the record.
    progress : callable, optional
        Function that is called with the number of finished figures, and of all figures.

    Returns
    -------
    list of Verdict
        Verdicts on all claims.

    Raises
    ------
    Refusal
        If a file of `out` cannot be written.
    """
    # Before the minutes that drawing takes.
    out.check()
    verdicts = judge(models)
    dataset = to_dataset(verdicts, models, command).assign_attrs(settings or {})
    drawn = dict(_draw_all(models, out.figures, progress))
    page = render(models, verdicts, drawn, dataset, comparison)
    write_with_lock(out.page, partial(_write, page))
    # Last, since the file says that the page before it is complete.
    if out.claims is not None:
        netcdf.save_with_lock(dataset, out.claims)
    return verdicts


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def _draw_all(
    models: Sequence[Files], directory: Path | None, progress: Progress | None
) -> Iterator[tuple[str, Drawn]]:
    """Yield every figure by its name, and write it into a directory if there is one."""
    pictures = list(every_picture())
    for index, picture in enumerate(pictures):
        if progress is not None:
            progress(index, len(pictures))
        path = None if directory is None else directory / f"{picture.name}.svg"
        yield picture.name, _draw(picture, models, path)
    if progress is not None:
        progress(len(pictures), len(pictures))


def _draw(picture: Picture, models: Sequence[Files], path: Path | None) -> Drawn:
    """Draw a figure and write it, or remove the one of an earlier report if it cannot be drawn."""
    try:
        text = to_svg(draw(picture, models))
    except Absent as error:
        if path is not None:
            remove_leftovers_with_lock(path)
            ownership.remove(path, ownership.FIGURE)
        return Drawn(picture, Markup(""), str(error))
    if path is not None:
        write_with_lock(path, partial(_write, on_white(text)))
    alt = f"{picture.title}: {', '.join(files.label for files in models)}"
    return Drawn(picture, inline(text, picture.name, alt))
