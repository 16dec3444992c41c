"""Every command, every line of Python and every example works as it is shown."""

import re

import pytest
from commands import COMMANDS
from pages import ROOT, blocks, commands

from recipes.experiments.catalogue import PICTURES
from robustness.measurements.measurement import MEASUREMENTS
from robustness.schedules.built_in import FORMS, PAIRS

EVERY = [str(path.relative_to(ROOT)) for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]]


def test_every_intervention_is_described():
    text = (ROOT / "docs/measurements/sweep.md").read_text()
    for form in (*FORMS, *PAIRS):
        assert f"| `{form}`" in text or f", `{form}`" in text, form


@pytest.mark.parametrize("page", EVERY)
def test_commands_that_need_something_else_are_at_least_understood(page):
    for words in commands(page, "sh no-run"):
        if words[0] == "stages":
            command = COMMANDS[words[1]]
            params = command.make_context(words[1], words[2:]).params
            assert params.get("model", words[2]) == words[2]
        elif words[0] != "export":
            assert (ROOT / words[1]).exists()


def test_the_table_names_the_variables_that_there_are():
    page = (ROOT / "docs/measurements.md").read_text()
    for measurement in MEASUREMENTS.values():
        for metric in measurement.variables:
            assert f"`{metric.name}`" in page


def test_a_measurement_of_ones_own_takes_less_than_20_lines():
    (code,) = blocks("docs/measurements.md", "python")
    assert len([line for line in code.splitlines() if line.strip()]) < 20


def test_every_measurement_has_a_page_with_a_picture():
    pages = {path.stem: path.read_text() for path in ROOT.glob("docs/measurements/*.md")}
    assert pages.keys() >= {*MEASUREMENTS, "sweep", "neurons", "stages", "wic", "subjoiner"}
    index = (ROOT / "docs/README.md").read_text()
    for name, page in pages.items():
        assert re.search(r"!\[[^\]]+\]\(\.\./images/", page), name
        assert f"(measurements/{name}.md)" in index


def test_every_figure_stands_in_the_gallery_with_a_sentence():
    page = (ROOT / "docs/gallery.md").read_text()
    for picture in PICTURES.values():
        found = re.search(rf"!\[[^\]]+\]\(images/gallery/{picture.name}\.svg\)\n\n(.+\.)\n", page)
        assert found, picture.name
    drawn = {path.stem for path in ROOT.glob("docs/images/gallery/*")}
    assert drawn == {picture.name for picture in PICTURES.values()}


def test_every_link_to_a_file_leads_somewhere():
    for page in [*EVERY, "CONTRIBUTING.md"]:
        text = (ROOT / page).read_text()
        for link, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", text):
            target = (ROOT / page).parent / link if link else ROOT / page
            assert target.exists(), f"{page}: {link}"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
                slugs = {
                    re.sub(r"[^\w\- ]", "", each).lower().replace(" ", "-") for each in headings
                }
                assert anchor in slugs, f"{page}: #{anchor}"


def test_the_architecture_names_what_there_is():
    text = (ROOT / "docs/architecture.md").read_text()
    for name in re.findall(r"`((?:robustness|recipes|probes)/[\w./]*|\w+\.py)`", text):
        assert (ROOT / name).exists() or list(ROOT.glob(f"r*/**/{name}")), name
    rooms = [*ROOT.glob("robustness/*/"), *ROOT.glob("recipes/*/")]
    for room in rooms:
        if room.name != "__pycache__":
            assert f"`{room.relative_to(ROOT)}/`" in text, room
