"""Files as tables and figures, whatever their kind."""

import csv
import importlib
import io
import json
import sys

import numpy as np
import pytest
import xarray as xr
from planted import plant

import cli
from recipes.evidence.files import Files
from recipes.experiments.catalogue import PICTURES
from recipes.figures import draw as draw_picture
from recipes.views import Column, Table, Tables, as_csv, as_json, as_text, draw, registry, table
from recipes.views.registry import View
from recipes.views.sections import Section
from robustness.files.labels import layer_coords
from robustness.files.netcdf import load, save
from robustness.files.provenance import file_attributes
from robustness.files.sequences import sequence_coords
from robustness.statistics.uncertainty import standard_error

KIND = """
from recipes.views import style
from recipes.views.sections import Section

def sections(dataset):
    yield Section("by layer", "layer", {"surprise": dataset["surprise"]})

def figure(dataset):
    figure = style.new_figure(5, 3)
    style.lines(figure.subplots(), dataset["surprise"].expand_dims(of=["it"]), "of", "layer")
    return figure
"""


@pytest.fixture
def surprise(tmp_path):
    """Leave a file of a kind that no view knows."""
    values = np.random.default_rng(0).normal(size=(3, 4))
    settings = {"measurement": "surprise", "model": "one", "architecture": "A", "context": 8}
    data = xr.Dataset(
        {"surprise": (("layer", "sequence"), values, {"units": "nat", "long_name": "surprise"})},
        coords={**layer_coords(3), **sequence_coords(np.arange(4))},
        attrs=file_attributes(settings | {"corpus": "text", "sequences": 4}),
    )
    path = tmp_path / "surprise.nc"
    save(data, path)
    return path


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["stages", *map(str, words)])
    cli.main()


def test_a_new_kind_is_a_module_and_a_row(tmp_path, monkeypatch, capsys, surprise):
    (tmp_path / "surprise_view.py").write_text(KIND)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("surprise_view")
    row = View("surprise", module.sections, module.figure)
    monkeypatch.setattr(registry, "VIEWS", (*registry.VIEWS, row))
    run(monkeypatch, "show", surprise)
    shown = capsys.readouterr().out
    values = load(surprise).surprise
    mean, error = values.mean("sequence"), standard_error(values)
    assert "by layer" in shown
    assert f"{float(mean[0]):.3f} ±{float(error[0]):.3f}" in shown
    run(monkeypatch, "plot", surprise, "--out", tmp_path / "a.svg")
    assert (tmp_path / "a.svg").stat().st_size > 5000


def test_numbers_of_layers_alone_need_no_view(tmp_path, monkeypatch, capsys):
    """Such as norms of weights, which are of no text."""
    settings = {"measurement": "weights", "model": "one", "architecture": "A"}
    variables = {"norm": ("layer", [3.0, 1.5, 2.25]), "heads": (("layer", "head"), np.ones((3, 2)))}
    save(xr.Dataset(variables, layer_coords(3), file_attributes(settings)), tmp_path / "w.nc")
    run(monkeypatch, "show", tmp_path / "w.nc", "--json")
    (shown,) = json.loads(capsys.readouterr().out)["tables"]
    assert [(row["layer"], row["norm"]) for row in shown["rows"]] == [(0, 3.0), (1, 1.5), (2, 2.25)]
    first, second = draw(load(tmp_path / "w.nc")).axes
    assert first.lines[0].get_ydata().tolist() == [3.0, 1.5, 2.25]
    assert len(second.lines) == 2


def test_columns_of_other_rows_are_no_table():
    """Side by side, the numbers of one layer would stand in the row of another."""
    one = xr.DataArray([1.0, 2.0], {"layer": [0, 1]}, "layer")
    other = {"sorted": one[::-1], "fewer": one[:1], "more": one.expand_dims(head=2)}
    for name, values in other.items():
        with pytest.raises(ValueError, match=f"column {name} (has other labels of|is over)"):
            Section("", "layer", {"first": one, name: values}).table()


@pytest.mark.parametrize("command", ["show", "plot"])
def test_a_fault_of_a_view_is_not_blamed_on_the_file(monkeypatch, capsys, surprise, command):
    def mistaken(dataset):
        yield dataset.sortby("nam")

    row = View("surprise", mistaken, lambda dataset: next(mistaken(dataset)))
    monkeypatch.setattr(registry, "VIEWS", (*registry.VIEWS, row))
    with pytest.raises(SystemExit):
        run(monkeypatch, command, surprise)
    told = capsys.readouterr().err
    assert "does not fit the view of files of the kind surprise" in told and "'nam'" in told
    assert "or mend the view" in told and "damaged" not in told


def test_every_kind_of_file_has_one_row():
    kinds = [view.kind for view in registry.VIEWS]
    assert len(set(kinds)) == len(kinds)


def curves(figure):
    """Return the heights of every line with markers, and those of the edge of its band."""
    found = []
    for axis in figure.axes:
        marked = [line for line in axis.lines if line.get_marker() not in {"None", None, ""}]
        bands = [each for each in axis.collections if len(each.get_facecolor())]
        for line, band in zip(marked, bands, strict=False):
            edge = np.concatenate([path.vertices[:, 1] for path in band.get_paths()])
            found.append((np.asarray(line.get_ydata(), float), edge))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file", "shared"),
    [("5a", "sweep", 4), ("18", "similarity", 10), ("15", "tasks", 3),
     ("20", "wic", 3), ("6b", "subjoiner", 2)],
)  # fmt: skip
def test_two_pictures_of_a_curve_have_the_same_band(tmp_path, name, file, shared):
    plant(tmp_path)
    of_report = curves(draw_picture(PICTURES[name], [Files(tmp_path)]))
    matched = 0
    for heights, edge in curves(draw(load(tmp_path / f"{file}.nc"))):
        same = [band for line, band in of_report if np.array_equal(line, heights, equal_nan=True)]
        for band in same:
            np.testing.assert_allclose(band, edge)
        matched += bool(same)
    assert matched == shared


@pytest.mark.slow
def test_a_table_has_a_form_for_machines(tmp_path):
    plant(tmp_path)
    data = load(tmp_path / "sweep.nc")
    data.kl.attrs["units"] = "nat"
    tables = table(data)
    read = json.loads(as_json(tables))
    assert [each["title"] for each in read["tables"]] == ["drop", "swap"]
    (drop, swap), kl = read["tables"], data.kl.sel(intervention="drop")
    assert drop["units"]["kl"] == "nat"
    assert drop["rows"][2]["layer"] == 2
    assert drop["rows"][2]["kl"] == float(kl.mean("sequence")[2])
    assert drop["rows"][2]["kl standard error"] == pytest.approx(float(standard_error(kl)[2]))
    assert swap["rows"][-1]["kl"] is None
    rows = list(csv.DictReader(io.StringIO(as_csv(tables))))
    assert len(rows) == 2 * data.sizes["layer"]
    assert (rows[2]["table"], rows[2]["layer"]) == ("drop", "2")
    assert float(rows[2]["kl"]) == float(kl.mean("sequence")[2]) and rows[-1]["kl"] == ""
    by_bootstrap = json.loads(as_json(table(data, by_bootstrap=True)))["tables"][0]["rows"][2]
    assert by_bootstrap["kl low"] < by_bootstrap["kl"] < by_bootstrap["kl high"]


WIDE = Tables(
    [
        Table(
            "numbers",
            [
                Column("claim", ["C1", "C2"]),
                Column("text", ["a " * 40, "b"]),
                Column("value", [-1e-14, 0.25], errors=[0.0, 0.001]),
                Column("other", [float("nan"), -0.0001]),
            ],
        )
    ]
)


def test_a_table_fits_the_terminal_or_says_what_it_leaves_out():
    whole = as_text(WIDE)
    assert max(map(len, whole.splitlines())) > 80 and "not shown" not in whole
    for width in (70, 50, 40, 24):
        lines = as_text(WIDE, width).splitlines()
        *rows, _, note = lines
        rows = [line for line in rows if not line.startswith("not shown")]
        assert max(map(len, rows)) <= width
        assert "cut to the width" in note and "…" in rows[2]
    assert "not shown, for lack of width: value, other" in as_text(WIDE, 24)


def test_no_number_is_shown_as_minus_zero():
    shown = as_text(WIDE)
    assert "0.000 ±0.000" in shown and "-0.000" not in shown.replace("-0.00010", "")
