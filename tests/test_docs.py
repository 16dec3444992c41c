"""Every command, every line of Python and every example works as it is shown."""

import json
import re
import runpy
from pathlib import Path

import pytest
import torch
import xarray as xr
from loopback import configure, serving
from pages import ROOT, blocks, commands, run_page, run_python

import cli
from recipes.experiments.catalogue import PICTURES
from robustness.measurements.measurement import MEASUREMENTS
from robustness.models import checkpoint
from robustness.schedules.interventions import FORMS, PAIRS
from robustness.text import corpus

PAGES = [
    "README.md",
    "docs/tutorial.md",
    "docs/pruning.md",
    "docs/offload.md",
    "docs/recipes.md",
    "docs/statistics.md",
    "docs/measurements.md",
    "docs/measurements/sweep.md",
    "docs/measurements/stages.md",
    "docs/probes.md",
    "docs/families.md",
    "docs/extending.md",
    "docs/long-runs.md",
]
"""In the order in which a reader might follow them, in one directory."""

APART = ["docs/tasks.md", "docs/remote.md"]
"""Pages that need something besides."""

EVERY = [str(path.relative_to(ROOT)) for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]]


@pytest.fixture
def half_the_text(tmp_path, monkeypatch):
    """The first half of the built-in prose in its place: the same commands in half the time."""
    path = tmp_path / "prose.jsonl"
    texts = [text for _, text in corpus.documents("builtin")]
    lines = [json.dumps({"text": text}) for text in texts[: len(texts) // 2]]
    path.write_text("\n".join(lines) + "\n")
    monkeypatch.setitem(corpus.BUILTIN, "builtin", str(path))


def test_a_reader_can_follow_all_of_it_in_one_directory(
    tmp_path, monkeypatch, capsys, half_the_text
):
    monkeypatch.chdir(tmp_path)
    # The demonstration is what the README's first command runs.
    monkeypatch.setattr("sys.argv", ["stages", "demo"])
    cli.main()
    assert "report:  outputs/builtin/report.html" in capsys.readouterr().out
    for page in PAGES:
        run_page(page, monkeypatch)
    files = {path.stem for path in Path("outputs/builtin").glob("*.nc")}
    assert files >= {*MEASUREMENTS, "sweep", "repeat", "wic", "ing", "subjoiner", "claims"}
    assert Path("outputs/compare.html").exists() and Path("cka.svg").exists()
    assert {path.stem for path in Path("outputs/short").iterdir()} == {"lens", "norms"}
    assert "the best heads" in capsys.readouterr().out
    outliers = xr.load_dataset("outputs/builtin/outliers.nc").outlier_share
    assert outliers.dims == ("depth", "sequence") and outliers.notnull().all()
    probes = "".join((ROOT / f"docs/measurements/{name}.md").read_text()
                     for name in ("wic", "suffix", "subjoiner"))  # fmt: skip
    for name in ("wic", "ing", "subjoiner"):
        data = xr.load_dataset(f"outputs/builtin/{name}.nc")
        for variable in data.data_vars:
            if f"{variable}_low" in data:
                assert f"`{variable} (" in probes or f"`{variable}`" in probes, variable
    for example in sorted((ROOT / "examples").glob("*.py")):
        arguments = re.findall(r"outputs/builtin\S*", example.read_text().split('"""')[1])
        assert run_python(example.read_text(), *arguments), example.name


def test_every_intervention_is_described():
    text = (ROOT / "docs/measurements/sweep.md").read_text()
    for form in (*FORMS, *PAIRS):
        assert f"| `{form}`" in text or f", `{form}`" in text, form


def test_every_page_with_commands_or_python_is_run():
    for page in EVERY:
        assert not (blocks(page, "sh") or blocks(page, "python")) or page in [*PAGES, *APART]


@pytest.mark.parametrize("page", EVERY)
def test_commands_that_need_something_else_are_at_least_understood(page):
    for words in commands(page, "sh no-run"):
        if words[0] == "stages":
            command = cli.stages.commands[words[1]]
            params = command.make_context(words[1], words[2:]).params
            assert params.get("model", words[2]) == words[2]
        elif words[0] != "export":
            assert (ROOT / words[1]).exists()


def test_every_command_of_the_tasks_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("my-tasks").mkdir()
    Path("my-tasks/arc_easy.jsonl").write_text("".join(blocks("docs/tasks.md", "json")))
    run_page("docs/tasks.md", monkeypatch)
    assert "arc_easy, acc: clean" in capsys.readouterr().out
    data = xr.load_dataset("outputs/builtin/tasks.nc")
    assert data.sizes["item"] == 3
    for name in data.data_vars:
        assert f"`{name}`" in (ROOT / "docs/tasks.md").read_text()


def test_every_command_of_the_remote_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    directory = Path(checkpoint.resolve("builtin")[1])
    with serving("stages/sequential", directory, torch.float32) as both:
        configure(monkeypatch, *both, tmp_path / "cache")
        run_page("docs/remote.md", monkeypatch)
        assert "stages/sequential  " in capsys.readouterr().out
        assert {path.stem for path in Path("outputs/sequential").iterdir()} >= {"sweep", "lens"}
        (code,) = blocks("docs/remote.md", "python no-run")
        code = code.replace("meta-llama/Llama-3.1-70B", "stages/sequential").replace("40)", "4)")
        Path("own.py").write_text(code)
        assert runpy.run_path("own.py")["logits"].shape == (2048,)
    for words in commands("docs/remote.md", "sh no-run"):
        if words[0] == "stages":
            params = cli.stages.commands[words[1]].make_context(words[1], words[2:]).params
            assert params["remote"]


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
