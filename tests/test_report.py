"""The page: whole, valid, self-contained, and true to the files."""

import re
from pathlib import Path

import html5lib
import matplotlib.figure
import pytest
import xarray as xr
from markupsafe import Markup
from planted import plant
from searches import finished, planted_search, unfinished
from stand_ins import leave_undrawn

from recipes.evidence.files import Files, side_by_side
from recipes.evidence.stages import stages
from recipes.experiments.catalogue import PICTURES, RECIPES
from recipes.figures import draw
from recipes.judging.compare import compare
from recipes.recipe import SOURCES
from recipes.report.content import snippet
from recipes.report.page import ReportFiles, report
from recipes.report.svg import inline, on_white, to_svg
from robustness.errors import Refusal
from robustness.files.netcdf import load, save

NAMED = {"model": "<gpt2> & co", "architecture": "GPT2LMHeadModel"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("planted") / "gpt2"
    plant(path, name="<gpt2> & co")
    stages(path, out=path / "stages.nc")
    save(finished(planted_search(identity=NAMED)), path / "search.nc")
    report([Files(path)], ReportFiles(path / "report.html", path / "claims.nc", path / "figures"))
    return path


@pytest.fixture
def undrawn(monkeypatch):
    leave_undrawn(monkeypatch)


@pytest.fixture(scope="module")
def page(directory) -> str:
    return (directory / "report.html").read_text()


def check(page: str) -> None:
    """Parse a page strictly, and look for what a parser lets pass."""
    html5lib.HTMLParser(strict=True).parse(page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    targets = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)
    assert {one or other for one, other in targets} <= set(ids)
    assert len(page.encode()) < 5_000_000


@pytest.mark.slow
def test_a_page_is_valid_and_asks_no_other_host_for_anything(page):
    check(page)
    loading = re.findall(r'(?:src|data|xlink:href|srcset|action)="([^"]*)"', page)
    assert all(link.startswith(("data:", "#")) for link in loading)
    assert not re.search(r"@import|<script|<link|<iframe|url\((?!#)", page)
    assert re.findall(r'href="(http[^"]+)"', page) == ["https://arxiv.org/abs/2406.19384"]


def test_what_comes_from_files_is_escaped(page):
    assert "&lt;gpt2&gt; &amp; co" in page and "<gpt2>" not in page


def test_it_has_every_figure_with_its_text_and_every_claim(page, directory):
    for recipe in RECIPES:
        assert f'id="{recipe.name}"' in page
        for claim in recipe.claims:
            assert f"<b>{claim.name}</b>" in page
        for picture in recipe.pictures:
            if picture.fewest == 1:
                title = Markup.escape(picture.title)
                assert f"Figure {', '.join(picture.names)}. {title}" in page
                assert (directory / "figures" / f"{picture.name}.svg").stat().st_size > 2000
    images = re.findall(r"<svg ([^>]*)>", page)
    # Stages and the search come first.
    assert len(images) == 2 + sum(p.fewest == 1 for r in RECIPES for p in r.pictures)
    assert all('role="img"' in image and re.search('aria-label="[^"]+', image) for image in images)
    assert "is not drawn" not in page


def test_verdicts_on_the_page_are_those_of_the_file(page, directory):
    data = load(directory / "claims.nc")
    for claim, verdict in zip(data.claim.values, data.verdict.values):
        section = page[page.index(f"<b>{claim}</b>") :]
        assert re.search(r'<span class="verdict \w+">([^<]+)', section)[1] == verdict
    counts = {verdict: int((data.verdict == verdict).sum()) for verdict in set(data.verdict.values)}
    several = {"holds": "hold", "does not hold": "do not hold"}
    for verdict, count in counts.items():
        said = several.get(verdict, verdict) if count > 1 else verdict
        assert re.search(rf'{count} <span class="verdict \w+">{said}</span>', page)


@pytest.mark.slow
def test_the_two_lines_of_python_load_and_draw_a_file(directory, monkeypatch):
    monkeypatch.chdir(directory)
    for source in SOURCES:
        code = snippet(source)
        assert len(code.splitlines()) == 2 and source.look
        names: dict = {}
        exec(code, names)
        xr.testing.assert_identical(names["data"], load(Path(f"{source.file}.nc")))
        matplotlib.pyplot.close("all")


@pytest.mark.slow
def test_the_same_files_give_the_same_figures(directory):
    for name in ("5a", "14", "1"):
        text = on_white(to_svg(draw(PICTURES[name], [Files(directory)])))
        assert text == (directory / "figures" / f"{name}.svg").read_text()
        assert ">relative depth<" in text or ">depth<" in text, "text stays text"


@pytest.mark.slow
def test_what_is_not_there_is_said(tmp_path, undrawn):
    plant(tmp_path)
    for name in ("tasks", "ing"):
        (tmp_path / f"{name}.nc").unlink()
    verdicts = report(
        [Files(tmp_path, {"ing": "no token ends in ing"})], ReportFiles(tmp_path / "page.html")
    )
    page = (tmp_path / "page.html").read_text()
    check(page)
    assert "Figure 15 (tasks when blocks are swapped) is not drawn: not measured yet" in page
    assert "is not drawn: no token ends in ing." in page
    assert len(verdicts) == sum(len(recipe.claims) for recipe in RECIPES)


@pytest.mark.slow
def test_why_something_was_left_out_is_remembered(tmp_path, undrawn):
    plant(tmp_path)
    for name in SOURCES:
        if name.file not in {"wic", "stages"}:
            (tmp_path / f"{name.file}.nc").unlink()
    report(
        [Files(tmp_path, {"ing": "so it is"})],
        ReportFiles(tmp_path / "a.html", tmp_path / "claims.nc"),
    )
    assert Files(tmp_path).left_out == {"ing": "so it is"}
    report([Files(tmp_path)], ReportFiles(tmp_path / "b.html"))
    assert "is not drawn: so it is." in (tmp_path / "b.html").read_text()


@pytest.mark.slow
def test_models_side_by_side_have_a_page_too(tmp_path, directory, undrawn):
    plant(tmp_path / "other", name="other", reverse=True)
    both = [directory, tmp_path / "other"]
    dataset = compare([Files(path) for path in both])
    report(side_by_side(both), ReportFiles(tmp_path / "compare.html"), comparison=dataset)
    page = (tmp_path / "compare.html").read_text()
    check(page)
    assert "interior agreement, swap" in page and "Claims about each model" in page
    assert "does not hold" in page
    assert PICTURES["layers"].title in page and PICTURES["23"].title not in page


@pytest.mark.slow
def test_a_search_beside_the_files_is_a_section_of_the_page(directory, page):
    section = page.partition('<h2 id="pruning">')[2].partition("</section>")[0]
    assert '<td class="n">2 3 4</td>' in section and "pairwise, what the search took" in section
    assert section.count("<svg") == 1 and "optimism: held-out mean less search score" in section
    assert '<a href="#pruning">' in page


@pytest.mark.slow
def test_a_search_of_another_model_has_no_place_on_the_page(tmp_path):
    plant(tmp_path, name="one")
    assert Files(tmp_path).search() is None
    save(unfinished(planted_search(identity={**NAMED, "model": "one"})), tmp_path / "search.nc")
    assert Files(tmp_path).search() is None
    save(planted_search(), tmp_path / "search.nc")
    with pytest.raises(Refusal, match=r"search\.nc is of another model"):
        Files(tmp_path).search()


@pytest.mark.slow
def test_published_values_stand_beside_what_was_measured(tmp_path, undrawn):
    plant(tmp_path, name="openai-community/gpt2")
    report([Files(tmp_path)], ReportFiles(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    check(page)
    assert "Published values" in page and "Entropy of the frozen lens" in page
    assert "In bits, known to within 0.06" in page


def test_what_is_no_directory_of_a_model_is_refused(tmp_path):
    with pytest.raises(Refusal, match=r"has no file of a model.*stages reproduce"):
        report([Files(tmp_path)], ReportFiles(tmp_path / "page.html"))
    assert not (tmp_path / "page.html").exists()


def test_two_figures_in_a_page_share_no_name():
    images = []
    for name in ("a", "b"):
        figure = matplotlib.figure.Figure()
        axis = figure.subplots()
        axis.plot([0, 1], [1, 2], marker="o")
        images.append(inline(to_svg(figure), name, 'say "so" & <be> it'))
    ids = [set(re.findall(r'\bid="([^"]+)"', image)) for image in images]
    assert ids[0] and not ids[0] & ids[1]
    assert 'aria-label="say &#34;so&#34; &amp; &lt;be&gt; it"' in images[0]
    assert "#000000" not in images[0] and "currentColor" in images[0]
