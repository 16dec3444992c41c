"""One self-contained HTML page from the files of a model, or of several side by side."""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import isnan
from pathlib import Path
from typing import Any

import xarray as xr
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from matplotlib.figure import Figure

from recipes.evidence import published
from recipes.evidence.files import Absent, Files, side_by_side
from recipes.experiments.catalogue import RECIPES
from recipes.experiments.hypothesis import bounds
from recipes.figures import draw
from recipes.judging.verdicts import CLAIMS, FAILS, HOLDS, OPEN, Number, Verdict, judge, to_dataset
from recipes.recipe import SOURCES, STAGES, Picture, Recipe, Source
from recipes.terminal import printable
from recipes.views import comparison as comparison_view
from recipes.views import stages as stages_view
from recipes.views.style import COLOURS, LIGHT_ON_DARK, svg_style, with_plain_texts
from robustness.errors import Unwritable
from robustness.files import netcdf, ownership
from robustness.files.atomic import remove_leftovers_with_lock, write_with_lock

CLASSES = {HOLDS: "holds", FAILS: "fails", OPEN: "open"}
"""Of verdicts, in the page's style."""

POINTS = 12
"""Points of a figure to an em of the page."""

Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Drawn:
    """A figure on the page, or why it is not there."""

    picture: Picture
    image: Markup
    reason: str = ""


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
    page = _render(models, verdicts, drawn, dataset, comparison)
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
        for name in (picture.name for recipe in RECIPES for picture in recipe.pictures):
            yield Path(figures) / f"{name}.svg", ownership.FIGURE


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
    pictures = [picture for recipe in RECIPES for picture in recipe.pictures]
    for index, picture in enumerate(pictures):
        if progress is not None:
            progress(index, len(pictures))
        try:
            text = to_svg(draw(picture, models))
            alt = f"{picture.title}: {', '.join(files.label for files in models)}"
            yield picture.name, Drawn(picture, inline(text, picture.name, alt))
            if directory is not None:
                path = directory / f"{picture.name}.svg"
                write_with_lock(path, partial(_write, on_white(text)))
        except Absent as error:
            if directory is not None:
                path = directory / f"{picture.name}.svg"
                remove_leftovers_with_lock(path)
                ownership.remove(path, ownership.FIGURE)
            yield picture.name, Drawn(picture, Markup(""), str(error))
    if progress is not None:
        progress(len(pictures), len(pictures))


def to_svg(figure: Figure) -> str:
    """Write a figure as SVG, with nothing behind it."""
    buffer = io.StringIO()
    figure = with_plain_texts(figure)
    said = {"Creator": ownership.MARK, "Date": None, "Format": None, "Type": None}
    with svg_style():
        figure.savefig(buffer, format="svg", transparent=True, metadata=said)
    return buffer.getvalue()


def on_white(svg: str) -> str:
    """Return SVG with a white ground, to be looked at by itself."""
    ground = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return re.sub(r"(<svg [^>]*>)", rf"\1\n {ground}", svg, count=1)


def inline(svg: str, name: str, alt: str) -> Markup:
    """Return SVG that stands in a page among others and takes the page's colours.

    Black becomes the colour of the text. Of the names within the figure those that nothing refers
    to go, and the others get its own in front: otherwise they would clash with those of the next.
    """
    text = svg[svg.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", text)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>f-{name}-", text)
    text = re.sub(r' (xmlns|xmlns:xlink|version)="[^"]*"', "", text)
    text = re.sub(r"<style type=\"text/css\">.*?</style>", "", text, flags=re.DOTALL)
    text = text.replace("#000000", "currentColor")
    for index in range(len(LIGHT_ON_DARK)):
        ours = COLOURS[index].lower()
        text = text.replace(ours, f"var(--c{index}, {ours})")
    size = re.compile(r'width="([\d.]+)pt" height="[\d.]+pt"')
    width = f"width: {float(size.search(text)[1]) / POINTS:.0f}em"  # type: ignore[index]
    opening = f'<svg role="img" aria-label="{Markup.escape(printable(alt))}" style="{width}" '
    return Markup(size.sub("", text, count=1).replace("<svg ", opening, 1))


def _render(
    models: Sequence[Files],
    verdicts: Sequence[Verdict],
    drawn: dict[str, Drawn],
    claims: xr.Dataset,
    comparison: xr.Dataset | None,
) -> str:
    one = models[0] if len(models) == 1 else None
    environment = Environment(
        loader=PackageLoader("recipes.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown_as_text,
    )
    environment.filters |= {"number": _number, "asked": _asked}
    stages = one[STAGES] if one is not None and one.has(STAGES) else None
    image = Markup("")
    if stages is not None:
        alt = f"Signatures of {models[0].name} over layers, with the boundaries of stages"
        image = inline(to_svg(stages_view.figure(stages)), "stages", alt)
    return environment.get_template("report.html").render(
        title=", ".join(files.label for files in models),
        models=models,
        one=one,
        facts=_facts(one) if one else [],
        stages=image,
        division=_division(one),
        recipes=[
            {
                "recipe": recipe,
                "pictures": [drawn[picture.name] for picture in recipe.pictures],
                "verdicts": [each for each in verdicts if each.recipe is recipe],
                "sources": _sources(recipe, one) if one else [],
            }
            for recipe in RECIPES
            if one or any(_shown(recipe, verdicts, drawn))
        ],
        verdicts=verdicts,
        counts={name: sum(each.verdict == name for each in verdicts) for name in CLASSES},
        classes=CLASSES,
        light_on_dark=LIGHT_ON_DARK,
        published=published.of_model(one) if one else [],
        comparison=[] if comparison is None else comparison_view.text_rows(comparison),
        matrix=[] if comparison is None else _matrix(comparison),
        attrs=claims.attrs,
        snippets={source.file: snippet(source) for source in SOURCES},
    )


def _shown_as_text(value: Any) -> Any:
    """Write what a page must not hold, such as control characters of a name, as escapes."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _shown(recipe: Recipe, verdicts: Sequence[Verdict], drawn: dict[str, Drawn]) -> Iterator[bool]:
    yield from (each.recipe is recipe for each in verdicts)
    yield from (bool(drawn[picture.name].image) for picture in recipe.pictures)


def _facts(files: Files) -> list[tuple[str, str]]:
    """Return what is said of the model in one line each."""
    first = next(
        each for each in (files.get(source) for source in files.sources) if each is not None
    )
    names = {
        "model": "model",
        "revision": "revision",
        "weights_sha256": "SHA-256 of the weights",
        "architecture": "architecture",
        "dtype": "type",
        "device": "device",
        "server": "server",
        "corpus": "text",
        "tokens": "tokens",
        "context": "tokens in a sequence",
    }
    found = [(names[name], str(first.attrs[name])) for name in names if name in first.attrs]
    texts = {
        files[source].attrs.get("corpus_sha256")
        for source in files.sources
        if source.unit == "documents" and files.has(source)
    }
    if len(texts) > 1:
        found.append(("note", "the files are of different texts: see each experiment"))
    try:
        return [*found, ("layers", str(files.layers))]
    except Absent:
        return found


def _division(files: Files | None) -> str:
    """Say in a sentence where the stages begin."""
    if files is None or STAGES not in files.sources:
        return ""
    if files.missing(STAGES):
        return f"{files.missing(STAGES)}."
    dataset = files[STAGES]
    count = int(dataset.attrs["criterion_segments"])
    chosen = dataset["boundary"].sel(partition="chosen").dropna("edge")
    starts = ", ".join(str(int(edge)) for edge in chosen)
    text = (
        f"The criterion divides the {files.layers} layers into {count} segments, which begin at "
        f"layers 0, {starts}."
        if count > 1
        else f"The criterion does not divide the {files.layers} layers: there are no stages to "
        "be seen."
    )
    try:
        four = ", ".join(map(str, bounds(files)[:-1]))
    except Absent as error:
        return f"{text} {str(error).capitalize()}."
    return f"{text} The best division into four, as in the paper, begins at layers {four}."


def _sources(recipe: Recipe, files: Files) -> list[dict[str, Any]]:
    """Return of every file that a recipe is read from what it was made with."""
    shown = (
        "command",
        "created",
        "corpus",
        "corpus_sha256",
        "sequences",
        "tokens",
        "context",
        "bos",
        "seed",
        "dtype",
        "device",
        "processing",
        "server",
        "versions",
    )
    found = []
    for source in recipe.sources:
        dataset = files.get(source)
        attrs = {} if dataset is None else dataset.attrs
        # What is of weights alone has layers in the place of sequences.
        passed = () if "corpus" in attrs else ("sequences",)
        rows = [(name, str(attrs[name])) for name in shown if name in attrs and name not in passed]
        found.append({"source": source, "rows": rows, "missing": files.missing(source)})
    return found


def _matrix(comparison: xr.Dataset) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Return of every claim about one model verdict and numbers for each of the models."""
    claims = zip(comparison["claim"].values, comparison["claim_text"].values, strict=True)
    cells = (comparison[name].transpose("claim", "model").values for name in ("verdict", "numbers"))
    return [
        (str(name), str(text), list(zip(map(str, verdicts), map(str, numbers), strict=True)))
        for (name, text), verdicts, numbers in zip(claims, *cells, strict=True)
    ]


def _number(value: float) -> str:
    return "none" if isnan(value) else f"{value:.4g}"


def _asked(number: Number) -> str:
    least, most = number.check.least, number.check.most
    if least is not None and most is not None:
        return f"between {least:g} and {most:g}"
    if least is not None:
        return f"above {least:g}"
    return "no threshold" if most is None else f"below {most:.3g}"


def snippet(source: Source) -> str:
    """Return the lines of Python that load a file and draw something of it."""
    return f'import xarray as xr\ndata = xr.load_dataset("{source.file}.nc"); {source.look}'
