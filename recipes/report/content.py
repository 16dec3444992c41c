"""Content of the report's page: the values of its template, from files, verdicts and figures."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import xarray as xr
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from recipes.evidence import published
from recipes.evidence.files import Absent, Files
from recipes.experiments.catalogue import RECIPES
from recipes.experiments.hypothesis import bounds
from recipes.judging.verdicts import FAILS, HOLDS, OPEN, Number, Verdict
from recipes.recipe import SOURCES, STAGES, Picture, Recipe, Source
from recipes.report.svg import inline, to_svg
from recipes.terminal import printable
from recipes.views import comparison as comparison_view
from recipes.views import search as search_view
from recipes.views import stages as stages_view
from recipes.views.layout import as_rows
from recipes.views.registry import table
from recipes.views.style import LIGHT_ON_DARK
from robustness.files.precision_floor import describe_near
from robustness.files.sequences import measured_sequences

CLASSES = {HOLDS: "holds", FAILS: "fails", OPEN: "open"}
"""Names of verdicts in the page's style sheet."""

PLURALS = {HOLDS: "hold", FAILS: "do not hold", OPEN: "cannot be judged"}
"""Words for a verdict on several claims."""

FACTS = {
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
"""Attributes of a file that the page begins with, and their labels."""

SETTINGS = (
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
"""Attributes that are shown in the list of files."""


@dataclass(frozen=True)
class Drawn:
    """A figure on the page, or the reason why it is missing."""

    picture: Picture
    image: Markup
    """SVG of the figure; empty if it is missing."""
    reason: str = ""
    """Reason why the figure is missing."""


def render(
    models: Sequence[Files],
    verdicts: Sequence[Verdict],
    drawn: Mapping[str, Drawn],
    claims: xr.Dataset,
    comparison: xr.Dataset | None,
) -> str:
    """Return the page as HTML.

    Parameters
    ----------
    models : sequence of Files
        Files of one model, or of several to compare.
    verdicts : sequence of Verdict
        Verdicts on all claims.
    drawn : mapping of str to Drawn
        Figures by name.
    claims : Dataset
        Dataset of the verdicts, whose attributes say how the page was made.
    comparison : Dataset, optional
        Comparison of the models, from `recipes.judging.compare`.
    """
    return (
        _environment()
        .get_template("report.html")
        .render(
            title=", ".join(files.label for files in models),
            models=models,
            recipes=list(_experiments(models, verdicts, drawn)),
            verdicts=verdicts,
            counts=_counts(verdicts),
            classes=CLASSES,
            plurals=PLURALS,
            light_on_dark=LIGHT_ON_DARK,
            comparison=[] if comparison is None else comparison_view.text_rows(comparison),
            matrix=[] if comparison is None else _matrix(comparison),
            attrs=claims.attrs,
            snippets={source.file: snippet(source) for source in SOURCES},
            **_about_one(models),
        )
    )


def _counts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Return the number of claims by their verdict, also of verdicts that no claim has."""
    counts = dict.fromkeys(CLASSES, 0)
    for verdict in verdicts:
        counts[verdict.verdict] += 1
    return counts


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("recipes.report", "."),
        # Names come from files of others, and could hold a script.
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown_as_text,
    )
    environment.filters |= {"number": _number, "asked": _asked, "code": _with_code}
    return environment


def _about_one(models: Sequence[Files]) -> dict[str, Any]:
    """Return the values of the template that only a page of a single model shows."""
    if len(models) > 1:
        absent = {"stages": Markup(""), "division": "", "search": None}
        return {"one": None, "facts": [], "published": [], **absent}
    files = models[0]
    return {
        "one": files,
        "facts": _facts(files),
        "stages": _image_of_stages(files),
        "division": _division(files),
        "published": published.of_model(files),
        "search": _search(files),
    }


def _experiments(
    models: Sequence[Files], verdicts: Sequence[Verdict], drawn: Mapping[str, Drawn]
) -> Iterator[dict[str, Any]]:
    """Yield the content of every experiment; for several models, only of those with content."""
    one = models[0] if len(models) == 1 else None
    for recipe in RECIPES:
        pictures = [drawn[picture.name] for picture in recipe.pictures]
        judged = [each for each in verdicts if each.recipe is recipe]
        if one is not None or judged or any(picture.image for picture in pictures):
            yield {
                "recipe": recipe,
                "pictures": pictures,
                "verdicts": judged,
                "sources": [] if one is None else _sources(recipe, one),
            }


def _image_of_stages(files: Files) -> Markup:
    if not files.has(STAGES):
        return Markup("")
    alt = f"Signatures of {files.name} over layers, with the boundaries of stages"
    return inline(to_svg(stages_view.figure(files[STAGES])), "stages", alt)


def _search(files: Files) -> dict[str, Any] | None:
    """Return the figure and the tables of a search for a smaller model, if there is one."""
    dataset = files.search()
    if dataset is None:
        return None
    shown = table(dataset)
    alt = f"What {files.name} loses without some blocks, and how surely these are the best to lose"
    image = inline(to_svg(search_view.figure(measured_sequences(dataset))), "search", alt)
    tables = [(each.title, as_rows(each)) for each in shown.tables]
    return {"image": image, "notes": shown.notes, "tables": tables}


def _with_code(text: str) -> Markup:
    """Return a text as HTML, with text in backticks as code."""
    # Escaped first: afterwards the tags of this function would be escaped too.
    escaped = str(Markup.escape(printable(text)))
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", escaped))


def _shown_as_text(value: Any) -> Any:
    """Escape characters that a page must not contain, such as control characters of a name."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _facts(files: Files) -> list[tuple[str, str]]:
    """Return the labels and values of the list of facts about a model."""
    datasets = (files.get(source) for source in files.sources)
    first = next(dataset for dataset in datasets if dataset is not None)
    facts = [(FACTS[name], str(first.attrs[name])) for name in FACTS if name in first.attrs]
    texts = set()
    for source in files.sources:
        if source.unit == "documents" and files.has(source):
            texts.add(files[source].attrs.get("corpus_sha256"))
    if len(texts) > 1:
        facts.append(("note", "the files are of different texts: see each experiment"))
    for source in files.sources:
        dataset = files.get(source)
        near = None if dataset is None else describe_near(dataset)
        if near is not None:
            facts.append(("precision", f"{source.file}.nc: {near}"))
    try:
        return [*facts, ("layers", str(files.layers))]
    except Absent:
        return facts


def _division(files: Files) -> str:
    """Return the sentence on the stages and their first layers."""
    if STAGES not in files.sources:
        return ""
    if files.missing(STAGES):
        return f"{files.missing(STAGES)}."
    dataset = files[STAGES]
    count = int(dataset.attrs["criterion_segments"])
    text = (
        f"The criterion does not divide the {files.layers} layers: there are no stages to be seen."
    )
    if count > 1:
        chosen = dataset["boundary"].sel(partition="chosen").dropna("edge")
        starts = ", ".join(map(str, chosen.values.astype(int)))
        text = (
            f"The criterion divides the {files.layers} layers into {count} segments, which begin "
            f"at layers 0, {starts}."
        )
    try:
        four = ", ".join(map(str, bounds(files)[:-1]))
    except Absent as error:
        return f"{text} {str(error).capitalize()}."
    return f"{text} The best division into four, as in the paper, begins at layers {four}."


def _sources(recipe: Recipe, files: Files) -> list[dict[str, Any]]:
    """Return the settings of every file that a recipe needs, or why it is missing."""
    sources = []
    for source in recipe.sources:
        dataset = files.get(source)
        attrs = {} if dataset is None else dataset.attrs
        # In files of weights alone, the attribute counts layers.
        skipped = () if "corpus" in attrs else ("sequences",)
        rows = []
        for name in SETTINGS:
            if name in attrs and name not in skipped:
                rows.append((name, str(attrs[name])))
        sources.append({"source": source, "rows": rows, "missing": files.missing(source)})
    return sources


def _matrix(comparison: xr.Dataset) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Return claims about one model as rows, with verdict and numbers of each model as cells."""
    rows = []
    for claim in comparison["claim"].values:
        row = comparison.sel(claim=claim)
        verdicts, numbers = map(str, row["verdict"].values), map(str, row["numbers"].values)
        cells = list(zip(verdicts, numbers, strict=True))
        rows.append((str(claim), str(row["claim_text"].values), cells))
    return rows


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
    """Return the lines of Python that load a file and draw one of its variables."""
    return f'import xarray as xr\ndata = xr.load_dataset("{source.file}.nc"); {source.look}'
