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
from pages import ROOT, blocks, commands, places_of_tokens, run_page, run_python
from stand_ins import leave_undrawn, make_models, make_texts, stand_in
from transformers import AutoTokenizer

import cli
from robustness.measurements.measurement import MEASUREMENTS
from robustness.models import checkpoint
from robustness.text.corpus import cut

EVERY = [str(path.relative_to(ROOT)) for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]]

APART = ["README.md", "docs/tasks.md", "docs/remote.md"]
"""Pages that have tests of their own: the first for the real model, the others need more."""

SHOWN = [page for page in EVERY if blocks(page, "sh") or blocks(page, "python")]
PAGES = [page for page in SHOWN if page not in APART]

FIRST = (["stages", "demo"], "stages reproduce builtin-parallel E1 --tokens 3200".split())
"""What a reader has done before: the README's first command, and another model."""

WHOLE = ["docs/long-runs.md"]
"""Pages whose commands need all the tokens that they name; others have half of them."""


@pytest.fixture(scope="session")
def shared(tmp_path_factory, worker_id) -> Path:
    """A directory for what one worker makes for all of them."""
    base = tmp_path_factory.getbasetemp()
    place = (base if worker_id == "master" else base.parent) / "pages"
    place.mkdir(exist_ok=True)
    return place


@pytest.fixture(scope="session")
def texts(shared) -> dict[str, str]:
    """The beginnings of the built-in texts."""
    return made_once(shared / "texts", make_texts)


@pytest.fixture(scope="session")
def longer(shared) -> dict[str, str]:
    """More of the text, for pages that need it."""
    return made_once(shared / "longer", lambda directory: make_texts(directory, {"builtin": 33}))


@pytest.fixture(scope="session")
def models(shared) -> dict[str, str]:
    """Small random models in the places of the built-in ones."""
    return made_once(shared / "models", make_models)


@pytest.fixture(scope="session")
def begun(shared, texts, models) -> Path:
    """The directory in which the first commands were run."""

    def run_first(directory: Path) -> str:
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.chdir(directory)
            stand_in(monkeypatch, texts, models)
            leave_undrawn(monkeypatch)
            for words in FIRST:
                monkeypatch.setattr("sys.argv", words)
                cli.main()
        return str(directory)

    return Path(made_once(shared / "begun", run_first))


def made_once(directory: Path, make):
    """Return what a function returned, which filled a directory for one of the workers."""
    note = directory.with_suffix(".json")
    with FileLock(f"{directory}.lock"):
        if not note.exists():
            directory.mkdir()
            note.write_text(json.dumps(make(directory)))
    return json.loads(note.read_text())


@pytest.fixture
def reader(begun, tmp_path, monkeypatch, texts, models):
    """A directory in which a reader has run the first commands."""
    place = tmp_path / "reader"
    shutil.copytree(begun, place)
    monkeypatch.chdir(place)
    stand_in(monkeypatch, texts, models)
    leave_undrawn(monkeypatch)
    return monkeypatch


@pytest.mark.slow
def test_the_demonstration_names_what_it_leaves(begun):
    files = {path.stem for path in (begun / "outputs/builtin").glob("*.nc")}
    assert files >= {"sweep", "lens", "cka", "claims"}
    assert (begun / "outputs/builtin/report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_page_works_as_it_is_shown(page, longer, reader):
    if page in WHOLE:
        stand_in(reader, longer, {})
    run_page(page, reader, share=1 if page in WHOLE else 2)
    missing = [name for name in LEFT.get(page, ()) if not Path(name).exists()]
    assert not missing
    if page in LOOKED_INTO:
        LOOKED_INTO[page]()


@pytest.mark.slow
def test_the_first_page_works_from_nothing_on_the_model_that_is_built_in(tmp_path, monkeypatch):
    """On a fifth of the text."""
    monkeypatch.chdir(tmp_path)
    stand_in(monkeypatch, make_texts(tmp_path, {"builtin": 17}), {})
    leave_undrawn(monkeypatch)
    run_page("README.md", monkeypatch, share=3)
    left = ["outputs/repeat.nc", "outputs/compare.html", "outputs/builtin/wic.nc"]
    assert not [name for name in left if not Path(name).exists()]


def test_the_built_in_text_has_as_many_tokens_as_pages_ask_for():
    asked = []
    for page in EVERY:
        for words in commands(page):
            asked += [int(words[place]) for place in places_of_tokens(words)]
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.resolve("builtin")[1])
    assert cut("builtin", tokenizer, context=256, tokens=max(asked)).tokens.size >= max(asked)


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
def test_every_command_of_the_remote_page_runs(tmp_path, monkeypatch, capsys, models, texts):
    monkeypatch.chdir(tmp_path)
    stand_in(monkeypatch, texts, {})
    directory = Path(models["builtin"])
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
            assert words[1] == "plot" or params["remote"]
