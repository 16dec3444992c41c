"""Every command and every line of Python in the documentation works as it is shown."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import xarray as xr

import cli
from robustness.measurement import MEASUREMENTS

PAGE = (Path(__file__).parents[1] / "docs" / "measurements.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_every_command_of_the_measurements_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for line in "".join(blocks("sh")).splitlines():
        monkeypatch.setattr(sys, "argv", shlex.split(line, comments=True))
        cli.main()
    assert {path.stem for path in Path("outputs/builtin").iterdir()} == {*MEASUREMENTS, "neurons"}
    assert {path.stem for path in Path("outputs/short").iterdir()} == {"lens", "norms"}
    assert Path("cka.svg").exists() and "recomputed" in capsys.readouterr().out


def test_the_table_names_the_variables_that_there_are():
    for measurement in MEASUREMENTS.values():
        for metric in measurement.variables:
            assert f"`{metric.name}`" in PAGE


def test_a_measurement_of_ones_own_takes_less_than_20_lines(tmp_path):
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) < 20
    (tmp_path / "own.py").write_text(code)
    done = subprocess.run([sys.executable, "own.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    data = xr.load_dataset(tmp_path / "outputs" / "builtin" / "outliers.nc")
    assert data.outlier_share.dims == ("depth", "sequence")
    assert data.outlier_share.notnull().all() and 0 < data.outlier_share.mean() < 1
