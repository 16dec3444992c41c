"""The report: verdicts and figures from the files of one model or several, in one HTML page."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import xarray as xr
from markupsafe import Markup

from recipes.evidence.files import Absent, Files, side_by_side
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
"""Told how many figures are drawn, and how many there are."""


def report(
    directories: Sequence[str | Path],
    out: str | Path,
    *,
    claims: str | Path | None = None,
    figures: str | Path | None = None,
    comparison: xr.Dataset | None = None,
    left_out: dict[str, str] | None = None,
    settings: dict[str, str] | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> list[Verdict]:
    """Judge claims, draw figures, and write both into one page.

    Parameters
    ----------
    directories : sequence of str or path
        A model's directory, or those of several, which then are set side by side.
    out : str or path
        The page.
    claims : str or path, optional
        Where the verdicts are saved as NetCDF.
    figures : str or path, optional
        A directory in which every figure is left as `.svg` too.
    comparison : Dataset, optional
        Of several models, as from `recipes.judging.compare`.
    left_out : dict, optional
        Why files are not there, by name.
    settings : dict, optional
        Further attributes of the verdicts' file.
    command : str
        The command line, for the record.
    progress : callable, optional
        Told how many figures are drawn, and how many there are.

    Returns
    -------
    list of Verdict
        What became of every claim.

    Raises
    ------
    Refusal
        If a directory has no files of a model, or `out` cannot be written.
    """
    models = (
        [Files(directories[0], left_out)] if len(directories) == 1 else side_by_side(directories)
    )
    check_places(Path(out), claims, figures)
    verdicts = judge(models)
    dataset = to_dataset(verdicts, models, command).assign_attrs(settings or {})
    drawn = dict(_draw_all(models, None if figures is None else Path(figures), progress))
    page = render(models, verdicts, drawn, dataset, comparison)
    write_with_lock(Path(out), partial(_write, page))
    if claims is not None:
        netcdf.save_with_lock(dataset, Path(claims))
    return verdicts


def places(
    page: Path, claims: str | Path | None, figures: str | Path | None
) -> Iterator[tuple[Path, str]]:
    """Yield every file that a report may leave, and its kind."""
    yield page, ownership.PAGE
    if claims is not None:
        yield Path(claims), CLAIMS
    if figures is not None:
        for picture in every_picture():
            yield Path(figures) / f"{picture.name}.svg", ownership.FIGURE


def check_places(page: Path, claims: str | Path | None, figures: str | Path | None) -> None:
    """Refuse a report that would replace what is not ours.

    Raises
    ------
    Unwritable
        If any of its files is in the way, or the directory of the figures is none.
    """
    if figures is not None and Path(figures).exists() and not Path(figures).is_dir():
        raise Unwritable(f"{figures} is a file, and figures go into a directory: name another")
    for path, kind in places(page, claims, figures):
        ownership.check(path, kind)


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def _draw_all(
    models: Sequence[Files], directory: Path | None, progress: Progress | None
) -> Iterator[tuple[str, Drawn]]:
    """Yield every figure by its name, and leave it in a directory too if there is one."""
    pictures = list(every_picture())
    for index, picture in enumerate(pictures):
        if progress is not None:
            progress(index, len(pictures))
        path = None if directory is None else directory / f"{picture.name}.svg"
        yield picture.name, _draw(picture, models, path)
    if progress is not None:
        progress(len(pictures), len(pictures))


def _draw(picture: Picture, models: Sequence[Files], path: Path | None) -> Drawn:
    """Draw a figure, and write it to a path or remove what an earlier report left there."""
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
