"""Every command and every line of Python in the documentation works as it is shown."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import torch
import xarray as xr
from loopback import configure, serving

import cli
from robustness import checkpoint
from robustness.measurement import MEASUREMENTS

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "measurements.md").read_text()
PROBES = (DOCS / "probes.md").read_text()
TASKS = (DOCS / "tasks.md").read_text()
REMOTE = (DOCS / "remote.md").read_text()


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def run(page: str, monkeypatch) -> None:
    for line in "".join(blocks(page, "sh")).splitlines():
        monkeypatch.setattr(sys, "argv", shlex.split(line, comments=True))
        cli.main()


def test_every_command_of_the_measurements_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(PAGE, monkeypatch)
    found = {path.stem for path in Path("outputs/builtin").iterdir()}
    assert found == {*MEASUREMENTS, "neurons", "stages"}
    assert {path.stem for path in Path("outputs/short").iterdir()} == {"lens", "norms"}
    assert Path("cka.svg").exists() and "recomputed" in capsys.readouterr().out


def test_every_command_of_the_probes_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(PROBES, monkeypatch)
    files = {path.stem: xr.load_dataset(path) for path in Path("outputs/builtin").iterdir()}
    assert files.keys() == {"wic", "ing", "subjoiner"}
    assert "the best heads" in capsys.readouterr().out
    for data in files.values():
        for name in data.data_vars:
            if f"{name}_low" in data:
                assert f"`{name} (" in PROBES or f"`{name}`" in PROBES, name


def test_every_command_of_the_tasks_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("my-tasks").mkdir()
    Path("my-tasks/arc_easy.jsonl").write_text("".join(blocks(TASKS, "json")))
    run(TASKS, monkeypatch)
    assert "arc_easy, acc: clean" in capsys.readouterr().out
    data = xr.load_dataset("outputs/builtin/tasks.nc")
    assert data.sizes["item"] == 3
    for name in data.data_vars:
        assert f"`{name}`" in TASKS


def test_every_command_of_the_remote_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    directory = Path(checkpoint.resolve("builtin")[1])
    with serving("stages/sequential", directory, torch.float32) as both:
        configure(monkeypatch, *both, tmp_path / "cache")
        run(REMOTE, monkeypatch)
        assert "stages/sequential  " in capsys.readouterr().out
        assert {path.stem for path in Path("outputs/sequential").iterdir()} >= {"sweep", "lens"}
        (code,) = blocks(REMOTE, "python no-run")
        code = code.replace("meta-llama/Llama-3.1-70B", "stages/sequential").replace("40)", "4)")
        Path("own.py").write_text(code)
        assert runpy.run_path("own.py")["logits"].shape == (2048,)
    for line in "".join(blocks(REMOTE, "sh no-run")).splitlines():
        words = shlex.split(line, comments=True)
        if words[0] == "stages":
            params = cli.stages.commands[words[1]].make_context(words[1], words[2:]).params
            assert params["remote"]
        elif words[0] != "export":
            assert (DOCS.parent / words[1]).exists()


def test_the_table_names_the_variables_that_there_are():
    for measurement in MEASUREMENTS.values():
        for metric in measurement.variables:
            assert f"`{metric.name}`" in PAGE


def test_a_measurement_of_ones_own_takes_less_than_20_lines(tmp_path):
    (code,) = blocks(PAGE, "python")
    assert len([line for line in code.splitlines() if line.strip()]) < 20
    (tmp_path / "own.py").write_text(code)
    done = subprocess.run([sys.executable, "own.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    data = xr.load_dataset(tmp_path / "outputs" / "builtin" / "outliers.nc")
    assert data.outlier_share.dims == ("depth", "sequence")
    assert data.outlier_share.notnull().all() and 0 < data.outlier_share.mean() < 1
