"""Every command, every line of Python and every example of the documentation works as shown."""

import json
import re
import runpy
import shutil
from pathlib import Path

import pytest
import torch
import xarray as xr
from commands import COMMANDS
from filelock import FileLock
from loopback import configure, serving
from pages import ROOT, blocks, commands, run_page, run_python

import cli
from robustness.measurements.measurement import MEASUREMENTS
from robustness.models import checkpoint
from robustness.text import sources

EVERY = [str(path.relative_to(ROOT)) for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]]

APART = ["docs/tasks.md", "docs/remote.md"]
"""Pages that need something besides, and have tests of their own."""

SHOWN = [page for page in EVERY if blocks(page, "sh") or blocks(page, "python")]
PAGES = [page for page in SHOWN if page not in APART]

FIRST = (["stages", "demo"], "stages reproduce builtin-parallel E1 --tokens 6400".split())
"""What a reader has done before: the README's first command, and another model."""


@pytest.fixture(scope="session")
def half_the_text(tmp_path_factory) -> Path:
    """The first half of the built-in prose: the same commands in half the time."""
    path = tmp_path_factory.mktemp("text") / "prose.jsonl"
    texts = [text for _, text in sources.documents("builtin")]
    lines = [json.dumps({"text": text}) for text in texts[: len(texts) // 2]]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def begun(tmp_path_factory, worker_id, half_the_text) -> Path:
    """The directory in which the first commands were run, by one worker for all of them."""
    base = tmp_path_factory.getbasetemp()
    shared = (base if worker_id == "master" else base.parent) / "begun"
    with FileLock(f"{shared}.lock"), pytest.MonkeyPatch.context() as monkeypatch:
        if not shared.exists():
            making = base / "making"
            making.mkdir()
            monkeypatch.chdir(making)
            monkeypatch.setitem(sources.BUILTIN, "builtin", str(half_the_text))
            for words in FIRST:
                monkeypatch.setattr("sys.argv", words)
                cli.main()
            making.rename(shared)
    return shared


@pytest.fixture
def reader(begun, tmp_path, monkeypatch, half_the_text):
    """A directory in which a reader has run the first commands."""
    place = tmp_path / "reader"
    shutil.copytree(begun, place)
    monkeypatch.chdir(place)
    monkeypatch.setitem(sources.BUILTIN, "builtin", str(half_the_text))
    return monkeypatch


@pytest.mark.slow
def test_the_demonstration_names_what_it_leaves(begun):
    files = {path.stem for path in (begun / "outputs/builtin").glob("*.nc")}
    assert files >= {"sweep", "lens", "cka", "claims"}
    assert (begun / "outputs/builtin/report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_page_works_as_it_is_shown(page, reader):
    run_page(page, reader)
    missing = [name for name in LEFT.get(page, ()) if not Path(name).exists()]
    assert not missing
    if page in LOOKED_INTO:
        LOOKED_INTO[page]()


def check_outliers() -> None:
    outliers = xr.load_dataset("outputs/builtin/outliers.nc").outlier_share
    assert outliers.dims == ("depth", "sequence") and outliers.notnull().all()
    assert {path.stem for path in Path("outputs/short").iterdir()} == {"lens", "norms"}


def check_intervals() -> None:
    """Every variable with an interval is described."""
    pages = [f"docs/measurements/{name}.md" for name in ("wic", "suffix", "subjoiner")]
    text = "".join((ROOT / page).read_text() for page in pages)
    for name in ("wic", "ing", "subjoiner"):
        data = xr.load_dataset(f"outputs/builtin/{name}.nc")
        for variable in data.data_vars:
            described = f"`{variable} (" in text or f"`{variable}`" in text
            assert described or f"{variable}_low" not in data, variable


LEFT = {
    "README.md": ["outputs/repeat.nc", "outputs/compare.html", "outputs/builtin/wic.nc"],
    "docs/tutorial.md": [f"outputs/builtin/{name}.nc" for name in (*MEASUREMENTS, "repeat", "ing")],
    "docs/measurements.md": ["cka.svg", "outputs/short/lens.nc", "outputs/builtin/outliers.nc"],
    "docs/probes.md": [f"outputs/builtin/{name}.nc" for name in ("wic", "ing", "subjoiner")],
}
"""Some of the files that pages leave."""

LOOKED_INTO = {"docs/measurements.md": check_outliers, "docs/probes.md": check_intervals}
"""Checks of what is in them."""


@pytest.mark.slow
@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda e: e.stem)
def test_an_example_runs(example, reader):
    arguments = re.findall(r"outputs/builtin\S*", example.read_text().split('"""')[1])
    assert run_python(example.read_text(), *arguments), example.name


@pytest.mark.slow
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


@pytest.mark.slow
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
            params = COMMANDS[words[1]].make_context(words[1], words[2:]).params
            assert params["remote"]
